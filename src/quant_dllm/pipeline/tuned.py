"""Tune the scales of a rounded checkpoint and write what comes of it."""

import logging
import time
from dataclasses import replace
from pathlib import Path

from quant_dllm.checkpoint.fingerprint import Fingerprint
from quant_dllm.checkpoint.folder import MANIFEST, Folder
from quant_dllm.checkpoint.writer import CheckpointWriter
from quant_dllm.distributed import any_rank, broadcast_facts, rank
from quant_dllm.errors import Interrupted
from quant_dllm.memory import PeakMemory
from quant_dllm.models.load import is_packed, load
from quant_dllm.models.model import DiffusionLM
from quant_dllm.pipeline.events import EVENTS, tuning_noted
from quant_dllm.pipeline.job import Job
from quant_dllm.pipeline.journal import Journal
from quant_dllm.pipeline.signals import Stop
from quant_dllm.pipeline.teacher import Teacher
from quant_dllm.pipeline.tune import EndToEndTuning
from quant_dllm.record import RunRecord, TuningRecord
from quant_dllm.track import Track

logger = logging.getLogger(__name__)

STATE = "tuning.safetensors"
WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "config.json", MANIFEST)


def tune(
    job: Job,
    journal: Journal,
    stop: Stop,
    rounded: Path,
    out: Path,
    record: RunRecord,
    track: Track,
    peak: PeakMemory,
) -> RunRecord:
    """Tune a rounded checkpoint towards the 16-bit model, and write the tuned one.

    Args:
        job: What was rounded.
        journal: Where the state of an unfinished tuning is saved.
        stop: Tells when to stop.
        rounded: The checkpoint that was rounded.
        out: Folder to make.
        record: What ``rounded`` holds.
        track: Watches the progress.
        peak: What the process had in memory since the run began.

    Raises:
        Interrupted: It was asked to; what was learned so far is saved.
    """
    settings, text = job.tuning, job.tuning_text
    assert settings and text, "a job that tunes has text to tune on"
    began, events = time.monotonic(), journal.folder / EVENTS
    logger.info("all layers are rounded; tuning begins: %d updates", settings.steps)
    model = load(rounded, device=job.device, mask_token_id=job.mask_token_id)
    teacher = Teacher(job.source, job.device, job.dtype, settings.top)
    run = EndToEndTuning(
        model, teacher, settings, text.windows, text.validation, job.seed,
        state=journal.folder / STATE,
    )  # fmt: skip
    with journal.explained():
        steps = run.run() if rank() else tuning_noted(run.run(), events)
        for step in track(steps, "tuning", settings.steps):
            if any_rank(stop.wanted) and step.done < settings.steps:
                run.save()
                raise Interrupted(
                    f"stopped at step {run.step} of tuning; what was learned is saved. Go on with: "
                    f"quant-dllm resume {journal.out}"
                )
    seconds = round(time.monotonic() - began, 2)
    told = TuningRecord(curve=run.curve, every=settings.validate_every, seconds=seconds,
                        text=text.fingerprint)  # fmt: skip
    if rank():
        return RunRecord.from_dict(broadcast_facts(None, 0))
    journal.publishing()
    record = replace(
        record, tuning=told, seconds=round(record.seconds + seconds, 2),
        peak_memory=_most(record.peak_memory, peak.process),
        peak_device_memory=_most(record.peak_device_memory, peak.device),
    )  # fmt: skip
    record = _write(model, rounded, out, record, events)
    broadcast_facts(record.to_dict(), 0)
    return record


def _most(before: int | None, now: int | None) -> int | None:
    """Return the higher peak: rounding may have been another process."""
    return max(filter(None, (before, now)), default=None)


def _write(
    model: DiffusionLM, rounded: Path, out: Path, record: RunRecord, events: Path
) -> RunRecord:
    """Write a tuned model: what was learned from memory, all else from the rounded checkpoint."""
    folder, packed = Folder(rounded), Fingerprint()
    upstream = model.family.upstream
    with CheckpointWriter(out) as writer:
        for name, tensor in model.backbone.state_dict().items():
            stored = tensor.detach().cpu().to(folder.dtype(upstream(name)))
            if is_packed(model.backbone, name):
                packed.add(upstream(name), stored)
            writer.add({upstream(name): stored})
        for file in rounded.iterdir():
            if not any(file.match(pattern) for pattern in (*WEIGHTS, EVENTS)):
                writer.add_file(file.name, file.read_bytes())
        writer.add_file(EVENTS, events.read_bytes())
        bits = replace(record.bits, file=8 * writer.weight_bytes / record.parameters)
        record = replace(record, bits=bits, fingerprint=packed.digest())
        quantization = (folder.quantization or {}) | {"fingerprint": packed.digest()}
        writer.publish(folder.config | {"quantization_config": quantization}, record.to_dict())
    return record
