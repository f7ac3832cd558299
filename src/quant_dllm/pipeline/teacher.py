"""The 16-bit model as a teacher: one block in memory at a time, its likeliest tokens kept."""

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from quant_dllm.models.network import Network
from quant_dllm.models.source import Source
from quant_dllm.pipeline.original import read_block, read_outside
from quant_dllm.tuning.objective import HEAD_ROWS, TopLogits


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
        network = read_outside(self.source, self.device, self.dtype)
        looks = [
            network.look(canvas.to(self.device), text.to(self.device))
            for canvas, text in zip(canvases, texts, strict=True)
        ]
        states = [network.embed(ids) for ids, _ in looks]
        for index, empty in enumerate(network.blocks):
            block = read_block(self.source, index, empty, self.device, self.dtype)
            for i, x in enumerate(states):
                states[i] = block(x, looks[i][1])
        return [
            self._likeliest(network, x[self.source.rows(where)])
            for x, where in zip(states, hidden, strict=True)
        ]

    def _likeliest(self, network: Network, states: Tensor) -> TopLogits:
        parts = states.split(HEAD_ROWS)
        return TopLogits.cat(TopLogits.of(network.project(part), self.top) for part in parts)
