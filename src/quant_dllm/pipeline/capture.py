"""Run one block over stored states: collect a stage's inputs, or move on behind the block."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from quant_dllm.models.backbone import Block, Rotary
from quant_dllm.statistics.layer import LayerStatistics, Needs

STAGE_ORDERS = {
    "standard": (0, 1, 2, 3),
    "outputs-first": (1, 3, 0, 2),  # the release on LLaDA: attn_out, ff_out, then the rest
}
"""Indices into `STAGES` in the order in which they are quantized."""


@dataclass
class Stream:
    """What flows through the network while it is calibrated.

    Attributes:
        states: Batches [sequences, length, width] in front of the current block.
        rotary: Positions of a whole sequence.
    """

    states: list[Tensor]
    rotary: Rotary

    def inputs(self, block: Block, stage: int) -> Iterator[Tensor]:
        """Yield the inputs of one stage of the block, batch after batch."""
        for x in self.states:
            yield next(islice(block.stage_inputs(x, self.rotary), stage, None))

    def advance(self, block: Block) -> None:
        """Replace the states in front of a block by those behind it, batch by batch."""
        for i, x in enumerate(self.states):
            self.states[i] = block(x, self.rotary)

    def copy(self) -> "Stream":
        """Return a stream that may flow through another block."""
        return Stream(list(self.states), self.rotary)


class Capture:
    """Gathers the statistics of one block, stage after stage, while its layers are replaced.

    Args:
        block: The block; earlier stages may be quantized already when a later one is gathered.
        stream: What flows into it.
        full: The stream of the full-precision model, where drift is asked for.
        needs: What to gather.
        damping: Of the statistics.
    """

    def __init__(
        self, block: Block, stream: Stream, full: Stream | None, needs: Needs, damping: float
    ):
        self.block, self.stream, self.full = block, stream, full
        self.needs, self.damping = needs, damping
        self.original = copy.deepcopy(block) if full else block

    @torch.no_grad()
    def statistics(self, stage: int) -> LayerStatistics:
        """Account for the inputs that the layers of one stage receive."""
        full = self.full.inputs(self.original, stage) if self.full else ()
        return LayerStatistics.gather(
            self.stream.inputs(self.block, stage), self.damping, self.needs, full
        )

    @torch.no_grad()
    def advance(self) -> None:
        """Move the streams behind the block."""
        self.stream.advance(self.block)
        if self.full:
            self.full.advance(self.original)
