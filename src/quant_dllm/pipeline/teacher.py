"""The 16-bit model as a teacher: one block in memory at a time, its likeliest tokens kept."""

import copy

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from quant_dllm.models.load import place, place_buffers
from quant_dllm.models.source import Source
from quant_dllm.tuning.objective import TopLogits


class Teacher:
    """Streams canvases through the 16-bit model.

    Args:
        source: The 16-bit model.
        device, dtype: Where and in what to compute.
        top: Likeliest tokens to keep a position.
    """

    def __init__(self, source: Source, device: torch.device, dtype: torch.dtype, top: int):
        self.source, self.device, self.dtype, self.top = source, device, dtype, top

    @torch.no_grad()
    def targets(
        self,
        canvases: list[Int[Tensor, "batch length"]],
        hidden: list[Bool[Tensor, "batch length"]],
        texts: list[Int[Tensor, "batch length"]],
    ) -> list[TopLogits]:
        """Return what the model says of the hidden positions of each batch, row after row.

        Args:
            canvases: Masked texts, all of one length.
            hidden: What is hidden in them.
            texts: What they hide.
        """
        network = self.source.empty()
        for name in self.source.outside_blocks():
            self._place(network, name, name)
        place_buffers(network, self.device)
        looks = [
            network.look(canvas.to(self.device), text.to(self.device))
            for canvas, text in zip(canvases, texts, strict=True)
        ]
        states = [network.embed(ids) for ids, _ in looks]
        for index, empty in enumerate(network.blocks):
            block = self._block(index, empty)
            for i, x in enumerate(states):
                states[i] = block(x, looks[i][1])
        return [
            TopLogits.of(network.project(x[self.source.rows(where)]), self.top)
            for x, where in zip(states, hidden, strict=True)
        ]

    def _block(self, index: int, empty: nn.Module) -> nn.Module:
        block = copy.deepcopy(empty).eval()
        for name in block.state_dict():
            self._place(block, name, f"blocks.{index}.{name}")
        place_buffers(block, self.device)
        return block

    def _place(self, module: nn.Module, name: str, full: str) -> None:
        place(module, name, self.source.tensor(full), self.device, self.dtype)
