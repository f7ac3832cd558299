"""Embedding and head, which are in no block.

The embedding is packed before the blocks, which are calibrated behind what is stored. The head may
be packed by what it receives behind them, see `head_statistics`.
"""

import logging
import time

import torch
from jaxtyping import Bool
from torch import Tensor

from quant_dllm.checkpoint.writer import CheckpointWriter
from quant_dllm.pipeline.job import Job
from quant_dllm.quantizers.outside import Unchanged
from quant_dllm.record import LayerRecord
from quant_dllm.statistics.layer import LayerStatistics
from quant_dllm.weights.grouped import GroupedWeight

logger = logging.getLogger(__name__)

HEAD = "head"
Outside = dict[str, tuple[GroupedWeight, LayerRecord]]
"""Packed weights and their records, by slot."""


@torch.no_grad()
def pack_outside(
    job: Job, embedding_only: bool = False, seen: LayerStatistics | None = None
) -> Outside:
    """Round embedding and head as the recipe says; return them by slot.

    Args:
        job: What is quantized.
        embedding_only: Leave the head.
        seen: What the head receives, if it is rounded by that.
    """
    if isinstance(job.outside, Unchanged):
        return {}
    found = {}
    slots = job.source.empty().outside
    if not slots and not embedding_only:
        logger.warning(
            "Embedding and head of %s stay as they are: a %s network is transformers' own, which "
            "cannot look packed rows up.", job.source.name, job.source.family.name,
        )  # fmt: skip
    for slot in slots[:1] if embedding_only else slots:
        began = time.monotonic()
        weight = job.source.tensor(f"{slot}.weight").to(job.device)
        finer = _common(job, job.outside.finer_rows(len(weight)), len(weight))
        packed = job.outside.quantize(weight, finer, seen if slot == HEAD else None)
        found[slot] = packed, _record(job, slot, packed, time.monotonic() - began)
        job.source.folder.close()
    return found


def _common(job: Job, count: int, tokens: int) -> Bool[Tensor, " tokens"] | None:
    """Mark the tokens that the model meets most: the mask token, and the text's commonest."""
    if not count:
        return None
    assert job.windows is not None, "a job that asks for finer rows has text"
    times = torch.bincount(job.windows.flatten().cpu(), minlength=tokens)[:tokens]
    times[job.mask_token_id] = job.windows.numel() + 1
    common = times.argsort(descending=True, stable=True)[:count]
    return torch.zeros(tokens, dtype=torch.bool).index_fill_(0, common, True).to(job.device)


def write_outside(job: Job, packed: Outside, writer: CheckpointWriter) -> None:
    """Hand all that is in no block to the writer, packed or in the model's dtype."""
    for name in job.source.outside_blocks():
        tensor, slot = job.read(name), name.removesuffix(".weight")
        writer.add(
            _tensors(job, slot, packed[slot][0])
            if slot in packed
            else {job.source.family.upstream(name): tensor}
        )


def _tensors(job: Job, slot: str, weight: GroupedWeight) -> dict[str, Tensor]:
    """Name what is stored of a weight, and add it to the fingerprint."""
    upstream = job.source.upstream(slot)
    tensors = {f"{upstream}.{key}": tensor for key, tensor in weight.tensors().items()}
    for key, tensor in tensors.items():
        job.packed.add(key, tensor)
    return tensors


def _record(job: Job, slot: str, packed: GroupedWeight, seconds: float) -> LayerRecord:
    return LayerRecord(
        name=job.source.upstream(slot),
        kind=packed.kind,
        shape=[packed.out_features, packed.in_features],
        code_bits=packed.code_bits,
        stored_bits=packed.stored_bits,
        orders={},
        error=None,
        tokens=0,
        seconds=round(seconds, 3),
        layout={"kind": packed.kind} | packed.layout(),
    )
