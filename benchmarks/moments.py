"""Moments of a quantization: calls of what it is made of, before which it is killed or held.

A process kills itself by SIGKILL just before the n-th call, or, where a file is written, when half
of it is on disk.
"""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from quant_dllm.checkpoint import durable
from quant_dllm.checkpoint.writer import CheckpointWriter
from quant_dllm.pipeline import quantize as pipeline
from quant_dllm.pipeline.capture import Capture
from quant_dllm.pipeline.journal import Journal
from quant_dllm.pipeline.spool import Spool
from runs import DONE, forked, run, wait

PHASES: dict[str, tuple[Any, str]] = {
    "embedding": (Spool, "put"),
    "calibration": (Capture, "statistics"),
    "rounding": (pipeline, "_solve"),
    "saving a layer": (Journal, "save_layer"),
    "passing the block": (Capture, "advance"),
    "saving states": (Journal, "save_states"),
    "saving a block": (Journal, "save_block"),
    "half a file": (durable, "write"),
    "renaming": (Path, "replace"),
    "flushing": (os, "fsync"),
    "tidying up": (Path, "unlink"),
    "looking at the head": (pipeline, "head_statistics"),
    "handing over": (Journal, "hand_over"),
    "final shard": (CheckpointWriter, "_flush"),
    "final save": (CheckpointWriter, "publish"),
    "final name": (Path, "rename"),
    "writing the page": (pipeline, "leave"),
    "removing what was saved": (shutil, "rmtree"),
}


def counting(phase: str, do: Callable[[int], None]) -> Callable[[], None]:
    """Return what makes every call of a phase call ``do`` with its number first."""

    def patch() -> None:
        owner, name = PHASES[phase]
        original, calls = getattr(owner, name), iter(range(10**9))

        def wrapped(*args: Any, **options: Any) -> Any:
            number = next(calls)
            if phase == "half a file":
                do_half(number, do, args)
            else:
                do(number)
            return original(*args, **options)

        setattr(owner, name, wrapped)

    return patch


def do_half(number: int, do: Callable[[int], None], args: tuple[Any, ...]) -> None:
    """Leave half of what is to be written, in case this call is the last."""
    path, data = args[0], args[1]
    beside = path.with_name(path.name + durable.PART)
    beside.write_bytes(data[: len(data) // 2])
    do(number)


def count(model: Path, out: Path) -> dict[str, int]:
    """Make the unbroken run; return how many calls of each phase it makes."""
    log, calls = out.parent / "calls", dict.fromkeys(PHASES, 0)

    def note(phase: str, number: int) -> None:
        calls[phase] = number + 1
        with log.open("w") as file:
            json.dump(calls, file)

    def patch() -> None:
        for phase in PHASES:
            counting(phase, lambda number, phase=phase: note(phase, number))()

    assert wait(forked(lambda: run(model, out, patch))) == DONE
    return json.loads(log.read_text())


def kill_in(phase: str, number: int, model: Path, out: Path) -> int:
    """Run until the n-th call of a phase."""

    def do(call: int) -> None:
        if call == number:
            os.kill(os.getpid(), signal.SIGKILL)

    return wait(forked(lambda: run(model, out, counting(phase, do))))


def kill_after(seconds: float, model: Path, out: Path) -> int:
    """Run for some seconds."""
    child = forked(lambda: run(model, out))
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    return wait(child)


@contextmanager
def held(phase: str, number: int, model: Path, out: Path) -> Iterator[int]:
    """Run up to the n-th call of a phase and wait there until the end of the ``with`` statement.

    Yields:
        The process.
    """
    gate = out.with_name("gate")

    def do(call: int) -> None:
        if call == number:
            gate.touch()
            while gate.exists():
                time.sleep(0.01)

    child = forked(lambda: run(model, out, counting(phase, do)))
    while not gate.exists():
        time.sleep(0.01)
    try:
        yield child
    finally:
        gate.unlink()
