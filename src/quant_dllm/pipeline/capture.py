"""Run one block over stored states: collect a stage's inputs, or move on behind the block."""

from collections.abc import Iterable
from itertools import islice

import torch
from torch import Tensor

from quant_dllm.models.backbone import Block, Rotary
from quant_dllm.statistics.layer import LayerStatistics

STAGE_ORDERS = {
    "standard": (0, 1, 2, 3),
    "outputs-first": (1, 3, 0, 2),  # the release on LLaDA: attn_out, ff_out, then the rest
}
"""Indices into `STAGES` in the order in which they are quantized."""


@torch.no_grad()
def capture(
    block: Block, stage: int, states: Iterable[Tensor], rotary: Rotary, damping: float
) -> LayerStatistics:
    """Account for the inputs that the layers of one stage receive.

    Args:
        block: A block whose earlier stages may be quantized already.
        stage: Index into `STAGES`.
        states: Batches [sequences, length, width] that enter the block.
        rotary: Positions of a whole batch.
        damping: Of the statistics.
    """
    inputs = (next(islice(block.stage_inputs(x, rotary), stage, None)) for x in states)
    return LayerStatistics.gather(inputs, damping)


@torch.no_grad()
def advance(block: Block, states: list[Tensor], rotary: Rotary) -> None:
    """Replace states that enter the block by those that leave it, batch by batch."""
    for i, x in enumerate(states):
        states[i] = block(x, rotary)
