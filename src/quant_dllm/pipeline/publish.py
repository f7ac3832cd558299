"""Write the checkpoint of finished blocks, and the record of how it came about."""

import math
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from quant_dllm.checkpoint.folder import FORMAT_VERSION, METHOD, Folder
from quant_dllm.checkpoint.shim import SHIM, with_shim
from quant_dllm.checkpoint.writer import CheckpointWriter
from quant_dllm.distributed import broadcast_facts, from_first, rank
from quant_dllm.memory import PeakMemory
from quant_dllm.pipeline.events import EVENTS
from quant_dllm.pipeline.job import Job
from quant_dllm.pipeline.journal import Journal
from quant_dllm.pipeline.outside import Outside, pack_outside, write_outside
from quant_dllm.record import Bits, LayerRecord, RunRecord
from quant_dllm.statistics.layer import LayerStatistics


def published(folder: Path) -> RunRecord | None:
    """Return the record of a checkpoint that an earlier run wrote; ``None`` if it is not there."""
    found = from_first(lambda: Folder(folder).manifest if folder.is_dir() else None)
    return found and RunRecord.from_dict(found)


def publish(
    job: Job,
    journal: Journal,
    folder: Path,
    layers: list[LayerRecord],
    seen: LayerStatistics | None,
    began: float,
    peak: PeakMemory,
) -> RunRecord:
    """Write the checkpoint of finished blocks, embedding and head; the first process alone does.

    Args:
        job: What was quantized.
        journal: Where the blocks are.
        folder: To make.
        layers: Records of the blocks' layers, in any order.
        seen: What the head receives, if it is rounded by that.
        began: When this process began, by `time.monotonic`.
        peak: What it had in memory.

    Raises:
        CheckpointError: It cannot be written, or a block is not what was saved.
    """
    order = {job.source.upstream(slot): i for i, slot in enumerate(job.source.layers)}
    layers = sorted(layers, key=lambda layer: order[layer.name])
    if rank():
        return RunRecord.from_dict(broadcast_facts(None, 0))
    with CheckpointWriter(folder, left=journal.left) as writer:
        journal.hand_over(writer)
        outside = pack_outside(job, seen=seen)
        write_outside(job, outside, writer)
        for file in job.copied():
            writer.add_file(file.name, file.read_bytes())
        writer.add_file(EVENTS, (journal.folder / EVENTS).read_bytes())
        seconds = journal.seconds + time.monotonic() - began
        record = _record(job, layers, outside, writer.weight_bytes, seconds, peak)
        tuned = [facts["tuned"] for facts in journal.blocks if facts["tuned"]]
        record = replace(record, block_tuning=tuned)
        config, shim = with_shim(_config(job, [*layers, *record.outside]))
        writer.add_file(SHIM, shim)
        journal.publishing()
        writer.publish(config, record.to_dict())
        broadcast_facts(record.to_dict(), 0)
    return record


def _record(
    job: Job,
    layers: list[LayerRecord],
    outside: Outside,
    weight_bytes: int,
    seconds: float,
    peak: PeakMemory,
) -> RunRecord:
    """Sum the run up."""
    parameters = job.source.parameters()
    return RunRecord(
        format_version=FORMAT_VERSION,
        recipe=job.recipe.to_dict(),
        seed=job.seed,
        base_model=job.source.name,
        base_fingerprint=job.base.digest(),
        family=job.source.family.name,
        mask_token_id=job.mask_token_id,
        calibration=job.calibrated_on(),
        bits=Bits.average(
            [math.prod(layer.shape) for layer in layers],
            [layer.code_bits for layer in layers],
            [layer.stored_bits for layer in layers],
            8 * weight_bytes / parameters,
        ),
        parameters=parameters,
        seconds=round(seconds, 2),
        peak_memory=peak.process,
        peak_device_memory=peak.device,
        device=str(job.device),
        versions={name: version(name) for name in ("quant-dllm", "torch", "safetensors")},
        fingerprint=job.packed.digest(),
        layers=layers,
        outside=[layer for _, layer in outside.values()],
    )


def _config(job: Job, layers: list[LayerRecord]) -> dict[str, Any]:
    """Return the model's own ``config.json`` with what a loader must know added."""
    quantization = {
        "quant_method": METHOD,
        "format_version": FORMAT_VERSION,
        "fingerprint": job.packed.digest(),
        "layers": {layer.name: layer.layout for layer in layers},
    }
    config = job.source.folder.config | {"mask_token_id": job.mask_token_id}
    if job.source.config.attention_block != job.source.family.config(config).attention_block:
        config["attention_block"] = job.source.config.attention_block or 0
    return config | {"quantization_config": quantization}
