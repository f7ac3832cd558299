"""Tune the scales of a rounded checkpoint and write what comes of it."""

import time
from dataclasses import replace
from pathlib import Path

from quant_dllm.checkpoint.fingerprint import Fingerprint
from quant_dllm.checkpoint.folder import MANIFEST, Folder
from quant_dllm.checkpoint.writer import CheckpointWriter
from quant_dllm.distributed import any_rank, broadcast_facts, rank
from quant_dllm.errors import Interrupted
from quant_dllm.models.load import is_packed, load
from quant_dllm.models.model import DiffusionLM
from quant_dllm.pipeline.job import Job
from quant_dllm.pipeline.journal import Journal
from quant_dllm.pipeline.signals import Stop
from quant_dllm.pipeline.teacher import Teacher
from quant_dllm.pipeline.tune import EndToEndTuning
from quant_dllm.record import RunRecord, TuningRecord
from quant_dllm.track import Track

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

    Raises:
        Interrupted: It was asked to; what was learned so far is saved.
    """
    settings, text = job.tuning, job.tuning_text
    assert settings and text, "a job that tunes has text to tune on"
    began = time.monotonic()
    model = load(rounded, device=job.device, mask_token_id=job.mask_token_id)
    teacher = Teacher(job.source, job.device, job.dtype, settings.top)
    run = EndToEndTuning(
        model, teacher, settings, text.windows, text.validation, job.seed,
        state=journal.folder / STATE,
    )  # fmt: skip
    with journal.explained():
        for step in track(run.run(), "tuning", settings.steps):
            if any_rank(stop.wanted) and step + 1 < settings.steps:
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
    record = _write(model, rounded, out, replace(record, tuning=told), seconds)
    broadcast_facts(record.to_dict(), 0)
    return record


def _write(
    model: DiffusionLM, rounded: Path, out: Path, record: RunRecord, seconds: float
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
            if not any(file.match(pattern) for pattern in WEIGHTS):
                writer.add_file(file.name, file.read_bytes())
        bits = replace(record.bits, file=8 * writer.weight_bytes / record.parameters)
        record = replace(
            record, bits=bits, fingerprint=packed.digest(),
            seconds=round(record.seconds + seconds, 2),
        )  # fmt: skip
        quantization = (folder.quantization or {}) | {"fingerprint": packed.digest()}
        writer.publish(folder.config | {"quantization_config": quantization}, record.to_dict())
    return record
