"""A solved layer: packed weight and record, on their way to disk and to other processes."""

import logging
from collections import Counter
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from quant_dllm.distributed import broadcast_facts, broadcast_tensors
from quant_dllm.record import LayerRecord
from quant_dllm.statistics.layer import LayerStatistics, output_error
from quant_dllm.weights.base import WEIGHTS, QuantizedWeight

logger = logging.getLogger(__name__)

Solved = tuple[QuantizedWeight, LayerRecord]


def layer_record(
    name: str,
    weight: Float[Tensor, "out in"],
    packed: QuantizedWeight,
    stats: LayerStatistics,
    seconds: float,
    increase: float | None = None,
) -> LayerRecord:
    """Note what became of a layer, and log it."""
    orders = getattr(packed, "orders", getattr(packed, "bits", None))
    record = LayerRecord(
        name=name,
        kind=packed.kind,
        shape=list(weight.shape),
        code_bits=packed.code_bits,
        stored_bits=packed.stored_bits,
        orders={} if orders is None else {str(k): n for k, n in Counter(orders.tolist()).items()},
        error=output_error(weight, packed.dequantize(), stats) if stats.tokens else None,
        tokens=stats.tokens,
        seconds=round(seconds, 3),
        chosen=stats.chosen,
        layout={"kind": packed.kind} | packed.layout(),
        increase=increase,
    )
    logger.debug("%s", record.line())
    return record


def share(solved: Solved | None, owner: int, device: torch.device) -> Solved:
    """Return on all processes what one of them solved."""
    facts = None if solved is None else describe(*solved)
    tensors = None if solved is None else solved[0].tensors()
    facts = broadcast_facts(facts, owner)
    tensors = broadcast_tensors(tensors, owner, device)
    return solved or revive(tensors, facts)


def describe(packed: QuantizedWeight, record: LayerRecord) -> dict[str, Any]:
    """Say in JSON's types what the tensors of a solved layer do not."""
    return {"kind": packed.kind, "layout": packed.layout(), "record": record.to_dict()}


def revive(tensors: dict[str, Tensor], facts: dict[str, Any]) -> Solved:
    """Make a solved layer of its tensors and what `describe` said."""
    kind = WEIGHTS.get(facts["kind"])
    return kind(**tensors, **facts["layout"]), LayerRecord(**facts["record"])
