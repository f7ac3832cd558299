"""Kill a quantization at every kind of moment, go on with it, and compare the bytes.

    python benchmarks/kills.py                 # every moment below, recorded
    python benchmarks/kills.py --per-phase 1   # fewer of them, nothing recorded

A run is a process that was forked off this one, so that nothing is imported anew. Phases are calls:
the process kills itself by SIGKILL just before the n-th of them, or, where a file is written, when
half of it is on disk. `clock` kills it from outside after some seconds. After every kill nothing
may lie under the output's name but the whole checkpoint; a second run then goes on, and the weights
and config.json must be those of a run that was never stopped, byte for byte.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

import records
from quant_dllm.calibration.corpus import read_text
from quant_dllm.checkpoint import durable
from quant_dllm.checkpoint.writer import CheckpointWriter
from quant_dllm.errors import QuantDLLMError
from quant_dllm.models.backbone import Backbone
from quant_dllm.models.llada import FAMILY
from quant_dllm.models.source import locate
from quant_dllm.pipeline import quantize as pipeline
from quant_dllm.pipeline.capture import Capture
from quant_dllm.pipeline.job import Job
from quant_dllm.pipeline.journal import Journal, folder_of
from quant_dllm.pipeline.resume import resume
from quant_dllm.pipeline.spool import Spool
from quant_dllm.recipe import Recipe

TIMED = ("quant_dllm.json", "report.html", "README.md", "events.jsonl")
RESULTS = records.RESULTS / "kills.jsonl"
SETTINGS = {
    "calibration.sequences": 6,
    "calibration.length": 32,
    "precision.block_size": 16,
    "precision.ratio": 0.34,
    "quantizer.rounds": 2,
    "quantizer.refinements": 1,
}
TEXT = "calibration.txt"
CONFIG = {
    "architectures": ["LLaDAModelLM"], "model_type": "llada", "d_model": 40, "n_layers": 3,
    "n_heads": 2, "n_kv_heads": 2, "mlp_hidden_size": 56, "max_sequence_length": 64,
    "rope_theta": 10000.0, "rms_norm_eps": 1e-5,
}  # fmt: skip
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
    "handing over": (Journal, "hand_over"),
    "final shard": (CheckpointWriter, "_flush"),
    "final save": (CheckpointWriter, "publish"),
    "final name": (Path, "rename"),
    "removing what was saved": (shutil, "rmtree"),
}
DONE, REFUSED, STOPPED = 0, 2, 75


def make_model(folder: Path) -> Path:
    """Write a random LLaDA of three small blocks with the bundled tokenizer."""
    tiny = locate("tiny")
    vocab = json.loads((tiny / "config.json").read_text())["vocab_size"]
    config = CONFIG | {"vocab_size": vocab, "embedding_size": vocab, "mask_token_id": vocab - 1}
    torch.manual_seed(0)
    model = Backbone(FAMILY.config(config))
    folder.mkdir(parents=True)
    tensors = {FAMILY.upstream(n): t.contiguous() for n, t in model.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny / name, folder / name)
    text = read_text(tiny / "calibration.txt.gz")[:20_000]
    (folder / TEXT).write_text(text)
    return folder


def warm_up(model: Path) -> None:
    """Import and load here what every run would."""
    recipe = Recipe.load("quant-dllm-2bit").override(SETTINGS)
    Job.prepare(
        model, recipe, model / "none", text=model / TEXT, seed=0, device="cpu", mask_token_id=None
    )


def run(model: Path, out: Path, before: Callable[[], None] = lambda: None) -> None:
    """Quantize, or go on."""
    before()
    pipeline.quantize(model, out, settings=SETTINGS, calibration=model / TEXT)


def forked(work: Callable[[], Any], said: Path | None = None) -> int:
    """Start a process that does some work; its exit status is that of the command line."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        work()
        status = DONE
    except QuantDLLMError as error:
        if said:
            said.write_text(str(error))
        status = STOPPED if type(error).__name__ in ("Interrupted", "PeerLost") else REFUSED
    finally:
        os._exit(status)


def wait(child: int) -> int:
    """Return the exit status, or minus the signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


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


def die() -> None:
    """End at once, as by kill -9."""
    os.kill(os.getpid(), signal.SIGKILL)


def saved(out: Path) -> str:
    """Say what a killed run left."""
    if (out / "quant_dllm.json").is_file():
        return "the checkpoint"
    folder = folder_of(out)
    if not folder.is_dir():
        return "nothing"
    blocks = len(list(folder.glob("block-*.json")))
    layers = len(list(folder.glob("layer-*.json")))
    return f"{blocks} blocks, {layers} layers"


def same(out: Path, wanted: dict[str, str]) -> bool:
    """Tell whether a folder holds the files of the unbroken run, byte for byte."""
    return digests(out) == wanted


def digests(out: Path) -> dict[str, str]:
    """Return the SHA-256 of every file but those that tell of times and memory."""
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(out.iterdir())
        if file.name not in TIMED
    }


def litter(out: Path) -> list[str]:
    """Name what lies beside the output, hidden."""
    return [path.name for path in out.parent.iterdir() if path.name.startswith(f".{out.name}.")]


def go_on(model: Path, out: Path, wanted: dict[str, str]) -> dict[str, Any]:
    """Go on after a kill and say how it went."""
    found = saved(out)
    if out.exists() and not same(out, wanted):
        return {"found": found, "resumed": "-", "equal": False, "litter": litter(out)}
    began = time.monotonic()
    status = wait(forked(lambda: run(model, out)))
    finished = found == "the checkpoint"  # quantizing it again is refused: it is there already
    resumed = "was finished" if finished and status == REFUSED else f"exit {status}"
    return {
        "found": found,
        "resumed": resumed,
        "equal": (status == DONE or finished) and same(out, wanted) and not litter(out),
        "seconds": round(time.monotonic() - began, 2),
    }


def kill_in(phase: str, number: int, model: Path, out: Path) -> int:
    """Run until the n-th call of a phase."""
    do = lambda n: die() if n == number else None  # noqa: E731
    return wait(forked(lambda: run(model, out, counting(phase, do))))


def kill_after(seconds: float, model: Path, out: Path) -> int:
    """Run for some seconds."""
    child = forked(lambda: run(model, out))
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    return wait(child)


def kills(
    model: Path, folder: Path, args: argparse.Namespace, dice: random.Random
) -> Iterator[dict[str, Any]]:
    """Kill a run in every phase, and at random times; yield a record each."""
    began = time.monotonic()
    counts = count(model, folder / "unbroken")
    took, wanted = time.monotonic() - began, digests(folder / "unbroken")
    phases = [] if args.hostile else args.phase or PHASES
    for phase in phases:
        calls, per_phase = counts[phase], args.per_phase
        chosen = {0, calls - 1} if per_phase > 1 else {calls - 1}
        rest = [n for n in range(calls) if n not in chosen]
        chosen |= set(dice.sample(rest, min(len(rest), max(0, per_phase - len(chosen)))))
        for number in sorted(chosen):
            out = folder / "out"
            assert kill_in(phase, number, model, out) == -signal.SIGKILL
            yield {"moment": f"{phase}, call {number + 1} of {calls}"} | go_on(model, out, wanted)
            shutil.rmtree(out)
    for _ in range(args.clock):
        out, after = folder / "out", dice.uniform(0, took)
        status = kill_after(after, model, out)
        moment = f"after {after:.2f} s of {took:.2f}" + (" (had ended)" if status == DONE else "")
        yield {"moment": moment} | go_on(model, out, wanted)
        shutil.rmtree(out)


def refusal(work: Callable[[], Any], folder: Path) -> tuple[int, str]:
    """Run something that must be refused; return the status and the reason."""
    said = folder / "said"
    said.write_text("")
    return wait(forked(work, said)), said.read_text().replace(f"{folder}/", "")


def hostile(model: Path, folder: Path) -> Iterator[dict[str, Any]]:
    """Break the disk, the model, what is saved, and the rule of one run a folder."""
    wanted = digests(folder / "unbroken")
    yield from full_disk(model, folder, wanted)
    out = folder / "out"
    for name, spoil in {
        "a flipped byte in a block": lambda: flip(next(folder_of(out).glob("block-*.safetensors"))),
        "a flipped byte in a block's facts": lambda: flip(
            next(folder_of(out).glob("block-*.json"))
        ),
        "a flipped byte in the states": lambda: flip(
            next(folder_of(out).glob("states-*.safetensors"))
        ),
        "the states' checksums gone": lambda: next(folder_of(out).glob("states-*.json")).unlink(),
        "a flipped byte in a layer": lambda: flip(next(folder_of(out).glob("layer-*.safetensors"))),
        "a truncated shard of the model": lambda: truncate(model / "model.safetensors"),
        "a flipped byte in the model": lambda: flip(model / "model.safetensors"),
    }.items():
        kept = (model / "model.safetensors").read_bytes()
        assert kill_in("rounding", 11, model, out) == -signal.SIGKILL
        found = saved(out)
        spoil()
        status, reason = refusal(lambda: run(model, out), folder)
        (model / "model.safetensors").write_bytes(kept)
        healed = status == DONE and same(out, wanted)
        yield {"moment": name, "found": found, "resumed": reason or f"exit {status}",
               "equal": healed or (status == REFUSED and not out.exists())}  # fmt: skip
        for left in (out, folder_of(out)):
            shutil.rmtree(left, ignore_errors=True)
    child = forked(lambda: run(model, out, counting("rounding", lambda _: time.sleep(0.3))))
    time.sleep(2)
    status, reason = refusal(lambda: run(model, out), folder)
    assert wait(child) == DONE
    yield {"moment": "two runs into one folder", "found": "-", "resumed": reason,
           "equal": status == REFUSED and same(out, wanted)}  # fmt: skip
    shutil.rmtree(out)
    yield from signals(model, folder, wanted)


def signals(model: Path, folder: Path, wanted: dict[str, str]) -> Iterator[dict[str, Any]]:
    """Send one signal, and two."""
    out = folder / "out"
    for count_, number in ((1, signal.SIGTERM), (1, signal.SIGINT), (2, signal.SIGTERM)):
        child = forked(lambda: run(model, out, counting("rounding", lambda _: time.sleep(0.3))))
        time.sleep(2)
        for _ in range(count_):
            os.kill(child, number)
            time.sleep(0.02)
        status = wait(child)
        expected = STOPPED if count_ == 1 else -number
        result = go_on(model, out, wanted)
        result["equal"] = result["equal"] and status == expected
        yield {
            "moment": f"{number.name} {'once' if count_ == 1 else 'twice'}: exit {status}"
        } | result
        shutil.rmtree(out)


def full_disk(model: Path, folder: Path, wanted: dict[str, str]) -> Iterator[dict[str, Any]]:
    """Quantize onto a small tmpfs, or, where none may be mounted, under a limit on file sizes."""
    disk = folder / "disk"
    disk.mkdir(exist_ok=True)
    out = disk / "out"
    for size in (60_000, 200_000, 1_000_000):
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)]
        if subprocess.run(mount, capture_output=True).returncode:
            yield {"moment": "full disk", "found": "-", "resumed": "no tmpfs here", "equal": None}
            return
        try:
            status, reason = refusal(lambda: run(model, out), folder)
            found, whole = saved(out), out.exists()
            remount = ["mount", "-o", "remount,size=64m", str(disk)]
            subprocess.run(remount, check=True)
            result = go_on(model, out, wanted)
            result["found"] = f"{found}; {reason}"
            result["equal"] = result["equal"] and status == REFUSED and not whole
            yield {"moment": f"a disk of {size} bytes, then a larger one"} | result
        finally:
            subprocess.run(["umount", str(disk)], check=True)


def flip(path: Path) -> None:
    """Flip one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    """Cut off the end of a file."""
    path.write_bytes(path.read_bytes()[:-1000])


def check_resume_verb(model: Path, folder: Path) -> dict[str, Any]:
    """Go on by the output's name alone."""
    out = folder / "out"
    assert kill_in("rounding", 9, model, out) == -signal.SIGKILL
    found, status = saved(out), wait(forked(lambda: resume(out)))
    equal = same(out, digests(folder / "unbroken"))
    shutil.rmtree(out)
    return {"moment": "resume OUT", "found": found, "resumed": f"exit {status}", "equal": equal}


def table(found: list[dict[str, Any]]) -> str:
    """Format records as Markdown."""
    rows = ["| moment | found | resumed | bytes equal |", "|---|---|---|---|"]
    for r in found:
        equal = {True: "yes", False: "**no**", None: "-"}[r["equal"]]
        rows.append(f"| {r['moment']} | {r['found']} | {r['resumed']} | {equal} |")
    return "\n".join(rows)


def main() -> int:
    parser = argparse.ArgumentParser(description="Kill and resume.")
    parser.add_argument("--per-phase", type=int, default=2, help="kills in each phase")
    parser.add_argument("--phase", action="append", choices=PHASES, help="only these")
    parser.add_argument("--hostile", action="store_true", help="no kills, all that is hostile")
    parser.add_argument("--clock", type=int, default=8, help="kills at random times")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of moments")
    parser.add_argument("--folder", type=Path, help="where to work; a temporary one if not given")
    parser.add_argument("--record", action="store_true", help=f"add to {RESULTS.name}")
    args = parser.parse_args()
    torch.set_num_threads(1)
    os.environ.setdefault("QUANT_DLLM_KERNEL", "reference")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a fork keeps no threads
    dice, found = random.Random(args.seed), []
    with contextlib.ExitStack() as stack:
        folder = args.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        model = make_model(folder / "model")
        warm_up(model)
        work = kills(model, folder, args, dice)
        for record in work:
            found.append(record)
            print(json.dumps(record), file=sys.stderr, flush=True)
        if not args.phase or args.hostile:
            for record in chain([check_resume_verb(model, folder)], hostile(model, folder)):
                found.append(record)
                print(json.dumps(record), file=sys.stderr, flush=True)
    print(table(found))
    failed = sum(record["equal"] is False for record in found)
    print(f"\n{len(found)} moments, {failed} failed")
    if args.record:
        with RESULTS.open("a") as file:
            for record in found:
                records.append(file, {"what": "kill"} | record | records.where())
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
