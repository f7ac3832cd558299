"""What a run is made of: equal identities, equal checkpoints."""

from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

from quant_dllm.checkpoint.durable import file_digest
from quant_dllm.pipeline.job import Job
from quant_dllm.statistics.reduction import shards

SHOWN = 4  # differences that a message lists


def identity(job: Job) -> dict[str, Any]:
    """List every input of a quantization, in JSON's types; files by their SHA-256."""
    folder = job.source.folder
    files = [folder.path / "config.json", *folder.shards, *job.copied()]
    return {
        "model": {file.name: file_digest(file) for file in sorted(files)},
        "recipe": {k: v for k, v in job.recipe.to_dict().items() if k not in ("name", "about")},
        "calibration": job.calibrated_on(),
        "tuning_text": job.tuning_text and job.tuning_text.fingerprint,
        "seed": job.seed,
        "mask_token_id": job.mask_token_id,
        "attention_block": job.source.config.attention_block,
        "device": job.device.type,
        "shards": shards(),
        "versions": {name: version(name) for name in ("quant-dllm", "torch")},
    }


def difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Say in one line what is different: ``seed was 0, is 1``; nothing where nothing is."""
    before, now = dict(_flat(old)), dict(_flat(new))
    changed = [key for key in sorted(before | now) if before.get(key) != now.get(key)]
    told = [f"{key} was {_short(before, key)}, is {_short(now, key)}" for key in changed[:SHOWN]]
    more = [f"{len(changed) - SHOWN} more"] if len(changed) > SHOWN else []
    return "; ".join(told + more)


def _flat(value: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, item in value.items():
        if isinstance(item, dict):
            yield from _flat(item, f"{path}{key}.")
        else:
            yield f"{path}{key}", item


def _short(values: dict[str, Any], key: str) -> str:
    value = str(values.get(key, "absent"))
    return f"{value[:12]}…" if len(value) == 64 else value
