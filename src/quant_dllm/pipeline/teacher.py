"""The 16-bit model as a teacher: one block in memory at a time, its likeliest tokens kept."""

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from quant_dllm.models.backbone import Backbone, Block
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
    ) -> list[TopLogits]:
        """Return what the model says of the hidden positions of each batch, row after row."""
        outside = self.source.empty()
        self._fill(outside, [n for n in outside.state_dict() if not n.startswith("blocks.")])
        states = [outside.embed(canvas.to(self.device)) for canvas in canvases]
        rotary = outside.rotary(canvases[0].shape[1], self.device)
        for index in range(self.source.config.blocks):
            block = self._block(index)
            for i, x in enumerate(states):
                states[i] = block(x, rotary)
        rows = [self._rows(where) for where in hidden]
        return [
            TopLogits.of(outside.project(x[batch, row]), self.top)
            for x, (batch, row) in zip(states, rows, strict=True)
        ]

    def _rows(self, where: Bool[Tensor, "batch length"]) -> tuple[Tensor, Tensor]:
        batch, position = where.nonzero(as_tuple=True)
        return batch, self.source.family.row(position)

    def _block(self, index: int) -> Block:
        with torch.device("meta"):
            block = Block(self.source.config)
        self._fill(block, list(block.state_dict()), prefix=f"blocks.{index}.")
        return block

    def _fill(self, module: Backbone | Block, names: list[str], prefix: str = "") -> None:
        for name in names:
            slot, _, leaf = name.rpartition(".")
            tensor = self.source.tensor(prefix + name).to(self.device, self.dtype)
            setattr(module.get_submodule(slot), leaf, nn.Parameter(tensor, requires_grad=False))
