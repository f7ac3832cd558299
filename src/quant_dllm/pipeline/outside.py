"""Embedding and head: packed before the blocks, which are calibrated behind what is stored."""

import logging
import time

import torch
from torch import Tensor

from quant_dllm.checkpoint.writer import CheckpointWriter
from quant_dllm.pipeline.job import Job
from quant_dllm.quantizers.outside import Unchanged
from quant_dllm.record import LayerRecord
from quant_dllm.weights.grouped import GroupedWeight

logger = logging.getLogger(__name__)

Outside = dict[str, tuple[GroupedWeight, LayerRecord]]
"""Packed weights and their records, by slot."""


@torch.no_grad()
def pack_outside(job: Job, embedding_only: bool = False) -> Outside:
    """Round embedding and head as the recipe says; return them by slot."""
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
        packed = job.outside.quantize(job.source.tensor(f"{slot}.weight").to(job.device))
        found[slot] = packed, _record(job, slot, packed, time.monotonic() - began)
        job.source.folder.close()
    return found


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
