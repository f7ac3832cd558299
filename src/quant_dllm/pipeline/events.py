"""``events.jsonl``: a line for each layer and each look at tuning, for whoever follows a run."""

import json
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from quant_dllm.memory import PeakMemory
from quant_dllm.record import LayerRecord, TuningStep

EVENTS = "events.jsonl"


def noted(
    records: Iterable[LayerRecord], path: Path, last: str, **about: Any
) -> Iterator[LayerRecord]:
    """Pass layers on and append a line for each; the first line says what is done, and how much.

    Args:
        records: Of layers, as they come.
        path: File to append to: a run that goes on where it stopped adds what is not there yet.
        last: What the last line calls itself: the end, or that of rounding.
        about: What the first line says.
    """
    began, known = time.monotonic(), _known(path)
    _append(path, event="resume" if known else "start", **about)
    done = 0
    for done, layer in enumerate(records, start=1):
        if layer.name in known:
            yield layer
            continue
        _append(
            path, event="layer", done=done, layer=layer.name, bits=layer.code_bits,
            stored=layer.stored_bits, error=layer.error, tokens=layer.tokens,
            layer_seconds=layer.seconds, seconds=round(time.monotonic() - began, 3),
            peak_memory=PeakMemory.read(),
        )  # fmt: skip
        yield layer
    _append(path, event=last, done=done, seconds=round(time.monotonic() - began, 3))


def tuning_noted(steps: Iterable[TuningStep], path: Path) -> Iterator[TuningStep]:
    """Pass updates on, and append a line whenever the validation windows were looked at.

    Args:
        steps: As they come.
        path: File to append to.
    """
    began, looks, step = time.monotonic(), 0, None
    for step in steps:
        if len(step.curve) > looks:
            looks = len(step.curve)
            _append(
                path, event="tuning", done=step.done, steps=step.steps, loss=round(step.loss, 5),
                validation=round(step.curve[-1], 5), seconds=round(time.monotonic() - began, 3),
                peak_memory=PeakMemory.read(),
            )  # fmt: skip
        yield step
    _append(path, event="end", done=step.done if step else 0,
            seconds=round(time.monotonic() - began, 3))  # fmt: skip


def _known(path: Path) -> set[str]:
    """Name the layers that an earlier run noted; a line that was cut is passed over."""
    known = set()
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            known.add(json.loads(line)["layer"])
        except (ValueError, KeyError):
            continue
    return known


def _append(path: Path, **event: Any) -> None:
    line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds")} | event
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")
