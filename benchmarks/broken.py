"""Break the disk, the model and what was saved under a quantization, and send it signals."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moments import held, kill_in
from quant_dllm.pipeline.journal import folder_of
from quant_dllm.pipeline.resume import resume
from runs import (
    DONE,
    REFUSED,
    STOPPED,
    digests,
    forked,
    go_on,
    refusal,
    remove,
    run,
    same,
    saved,
    wait,
)

DISKS = (30_000, 90_000, 200_000)  # bytes: too small for states, for a block, for the second one


def hostile(model: Path, folder: Path) -> Iterator[dict[str, Any]]:
    """Do all of it; the unbroken run lies in the folder."""
    wanted = digests(folder / "unbroken")
    for work in (full_disk, broken_files, two_runs, signals, resume_verb):
        yield from work(model, folder, wanted)


def broken_files(model: Path, folder: Path, wanted: dict[str, str]) -> Iterator[dict[str, Any]]:
    """Spoil a file of an interrupted run, or of the model; go on."""
    out, weights = folder / "out", model / "model.safetensors"
    interrupted, whole = folder / "interrupted", weights.read_bytes()
    assert kill_in("rounding", 11, model, out) == -signal.SIGKILL
    found = saved(out)
    shutil.copytree(folder_of(out), interrupted)

    def first(pattern: str) -> Path:
        return next(folder_of(out).glob(pattern))

    for moment, spoil in {
        "a flipped byte in a block": lambda: flip(first("block-*.safetensors")),
        "a flipped byte in a block's facts": lambda: flip(first("block-*.json")),
        "a flipped byte in the states": lambda: flip(first("states-*.safetensors")),
        "the states' checksums gone": lambda: first("states-*.json").unlink(),
        "a flipped byte in a layer": lambda: flip(first("layer-*.safetensors")),
        "a truncated shard of the model": lambda: weights.write_bytes(whole[:-1000]),
        "a flipped byte in the model": lambda: flip(weights),
    }.items():
        remove(out)
        shutil.copytree(interrupted, folder_of(out))
        spoil()
        status, reason = refusal(lambda: run(model, out), folder)
        weights.write_bytes(whole)
        healed = status == DONE and same(out, wanted)
        yield {"moment": moment, "found": found, "resumed": reason or f"exit {status}",
               "equal": healed or (status == REFUSED and not out.exists())}  # fmt: skip
    remove(out)
    shutil.rmtree(interrupted)


def two_runs(model: Path, folder: Path, wanted: dict[str, str]) -> Iterator[dict[str, Any]]:
    """Start a run into the folder of another one."""
    out = folder / "out"
    with held("rounding", 3, model, out) as child:
        found = saved(out)
        status, reason = refusal(lambda: run(model, out), folder)
    assert wait(child) == DONE
    yield {"moment": "two runs into one folder", "found": found, "resumed": reason,
           "equal": status == REFUSED and same(out, wanted)}  # fmt: skip
    remove(out)


def signals(model: Path, folder: Path, wanted: dict[str, str]) -> Iterator[dict[str, Any]]:
    """Send one signal, and two."""
    out = folder / "out"
    for times, number in ((1, signal.SIGTERM), (1, signal.SIGINT), (2, signal.SIGTERM)):
        with held("rounding", 9, model, out) as child:
            for _ in range(times):
                os.kill(child, number)
                time.sleep(0.1)
        status = wait(child)
        result = go_on(model, out, wanted)
        result["equal"] = result["equal"] and status == (STOPPED if times == 1 else -number)
        how = "once" if times == 1 else "twice"
        yield {"moment": f"{number.name} {how}: exit {status}"} | result
        remove(out)


def full_disk(model: Path, folder: Path, wanted: dict[str, str]) -> Iterator[dict[str, Any]]:
    """Quantize onto a small tmpfs, and go on once it is larger."""
    disk = folder / "disk"
    disk.mkdir(exist_ok=True)
    out = disk / "out"
    for size in DISKS:
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)]
        if subprocess.run(mount, capture_output=True).returncode:
            yield {"moment": "full disk", "found": "-", "resumed": "no tmpfs here", "equal": None}
            return
        try:
            status, reason = refusal(lambda: run(model, out), folder)
            found, whole = saved(out), out.exists()
            subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
            result = go_on(model, out, wanted)
            result["equal"] = result["equal"] and status == REFUSED and not whole
            moment = f"a disk of {size} bytes, then a larger one"
            yield {"moment": moment} | result | {"found": found, "refused": reason}
        finally:
            subprocess.run(["umount", str(disk)], check=True)


def resume_verb(model: Path, folder: Path, wanted: dict[str, str]) -> Iterator[dict[str, Any]]:
    """Go on by the output's name alone."""
    out = folder / "out"
    assert kill_in("rounding", 9, model, out) == -signal.SIGKILL
    found, status = saved(out), wait(forked(lambda: resume(out)))
    yield {"moment": "resume OUT", "found": found, "resumed": f"exit {status}",
           "equal": same(out, wanted)}  # fmt: skip
    remove(out)


def flip(path: Path) -> None:
    """Flip one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
