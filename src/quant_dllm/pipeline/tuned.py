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

WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "config.json", MANIFEST)


def tune(job: Job, journal: Journal, stop: Stop, record: RunRecord, track: Track) -> RunRecord:
    """Tune a rounded checkpoint towards the 16-bit model, and write the tuned one.

    Args:
        job: What was rounded.
        journal: Where the checkpoint of it is, and the state of tuning goes.
        stop: Whether to stop.
        record: What that checkpoint holds.
        track: Watches the progress.

    Raises:
        Interrupted: It was asked to; the last round is saved.
    """
    rounded = journal.rounds_to
    settings, text = job.tuning, job.tuning_text
    assert settings and text, "a job that tunes has text to tune on"
    began = time.monotonic()
    model = load(rounded, device=job.device, mask_token_id=job.mask_token_id)
    teacher = Teacher(job.source, job.device, job.dtype, settings.top)
    run = EndToEndTuning(model, teacher, settings, text.windows, text.validation, job.seed,
                         state=journal.tuning)  # fmt: skip
    for _ in track(run.run(), "tuning", settings.steps):
        if any_rank(stop.wanted):
            raise Interrupted(
                f"stopped while tuning, after {run.step} updates; all finished rounds are saved. "
                f"Go on with: quant-dllm resume {journal.out}"
            )
    if rank():
        return RunRecord.from_dict(broadcast_facts(None, 0))
    seconds = round(time.monotonic() - began, 2)
    told = TuningRecord(curve=run.curve, every=settings.validate_every, seconds=seconds,
                        text=text.fingerprint)  # fmt: skip
    record = _write(model, rounded, journal, replace(record, tuning=told), seconds)
    broadcast_facts(record.to_dict(), 0)
    return record


def _write(
    model: DiffusionLM, rounded: Path, journal: Journal, record: RunRecord, seconds: float
) -> RunRecord:
    """Write a tuned model: what was learned from memory, all else from the rounded checkpoint."""
    folder, packed = Folder(rounded), Fingerprint()
    upstream = model.family.upstream
    with CheckpointWriter(journal.out) as writer:
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
        journal.publishing(journal.out)
        writer.publish(folder.config | {"quantization_config": quantization}, record.to_dict())
    return record
