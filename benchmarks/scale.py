"""Several processes against one: seconds, equality, and a model of the time that predicts more.

    python benchmarks/scale.py --record                      # measured here, then predicted
    python benchmarks/scale.py --write                       # the tables, of what is recorded

The model of the time of one block, with W processes, N tokens, and layers [out, in]:

    forward      e · p · 2 N Σ out·in / (W · F)   p passes of the text through (parts of) the block
    moments      e · 2 N Σ in² / (W · F)          once for layers that share their input
    solving      c · max over processes of Σ out·in² / F      layers packed into processes
    traffic      (log2 W · Σ 4 in² + packed bytes) / B        sums to their owners, planes to all
    the rest     s                                reading, saving: not shared

F is the arithmetic of one process, FLOP/s; B what two processes exchange, bytes/s; c the solver's
multiplications beyond GPTQ's out·in², s seconds, and e how many times longer the text takes than
large products would: small matrices, attention, norms, further passes. F and B are measured here
by a product of matrices and a broadcast; c, s and e are fitted to two runs of one process, on a
quarter of the text and on all of it. The runs of more processes are then predictions, held against
what was measured.
"""

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch

import records
import runs
from quant_dllm.models.source import locate, open_model

RESULTS = records.RESULTS / "scale.jsonl"
PAGE = records.ROOT / "docs" / "scaling.md"
BEGIN, END = "<!-- scale: made by benchmarks/scale.py --write -->", "<!-- end of scale -->"
RECIPES = ("gptq-2bit", "quant-dllm-2bit-untuned")
Record = dict[str, Any]


@dataclass(frozen=True)
class Shape:
    """What of a model decides the time.

    Attributes:
        blocks: Model blocks.
        stages: Groups of layers [out, in] that share their input, stage after stage; of a group of
            experts, how many there are of it.
        active: Share of the tokens that a routed layer sees.
    """

    name: str
    blocks: int
    stages: tuple[tuple[tuple[int, ...], ...], ...]
    experts: int = 1
    active: float = 1.0


def dense(name: str, blocks: int, width: int, mlp: int) -> Shape:
    """Return a dense decoder; a layer is out, in, and how often it is there."""
    return Shape(name, blocks, (
        ((width, width, 3),), ((width, width, 1),), ((mlp, width, 2),), ((width, mlp, 1),),
    ))  # fmt: skip


def mixture(name: str, blocks: int, width: int, mlp: int, experts: int, chosen: int) -> Shape:
    """Return a mixture of experts."""
    return Shape(name, blocks, (
        ((width, width, 3),), ((width, width, 1),), ((mlp, width, 2),), ((width, mlp, 1),),
    ), experts, chosen / experts)  # fmt: skip


LLADA = dense("LLaDA-8B", 32, 4096, 12288)
LARGE = mixture("100B mixture", 32, 4096, 1024, 256, 8)
"""Its blocks hold 256 experts of 3 · 4096 · 1024 weights: 103 B in all."""


@dataclass(frozen=True)
class Machine:
    """F, B, c, s and e of the module's docstring; bits are those a packed weight takes.

    A solver walks from column to column and does not reach the F of a product of matrices on a GPU:
    ``solver_flops`` is its own.
    """

    flops: float
    bytes_per_s: float
    solver: float
    rest_s: float
    text: float = 1.0
    solver_flops: float | None = None
    bits: float = 2.26

    def seconds(self, shape: Shape, ranks: int, tokens: int) -> dict[str, float]:
        """Predict the seconds of a whole run, by part."""
        forward = moments = solving = traffic = 0.0
        for stage in shape.stages:
            routed = shape.experts if stage in shape.stages[2:] else 1
            share = shape.active if routed > 1 else 1.0
            for out, inputs, count in stage:
                seen = tokens * share * routed
                forward += 2 * seen * out * inputs * count
                moments += 2 * seen * inputs**2
                rounds = math.ceil(count * routed / ranks)
                solving += self.solver * rounds * out * inputs**2
                sums = 4 * inputs**2 * routed * math.log2(ranks)
                planes = out * inputs * count * routed * self.bits / 8 * (ranks > 1)
                traffic += sums + planes
        passes = 1 + len(shape.stages) / 2  # a stage's inputs need the stages before it
        found = {
            "forward": self.text * passes * forward / ranks / self.flops,
            "moments": self.text * moments / ranks / self.flops,
            "solving": solving / (self.solver_flops or self.flops),
            "traffic": traffic / self.bytes_per_s,
            "the rest": self.rest_s,
        }
        return {part: shape.blocks * seconds for part, seconds in found.items()}


H100 = Machine(flops=2e14, bytes_per_s=2e11, solver=0.0, rest_s=2.0, solver_flops=3e12)
"""Assumed, not measured: a fifth of the bfloat16 peak, NVLink, a twentieth of the float32 peak for
solvers; c is that of the machine that was measured."""


def arithmetic(size: int = 1024, runs: int = 5) -> float:
    """Measure F: FLOP/s of a product of square float32 matrices in this process."""
    a, seconds = torch.randn(size, size), []
    for _ in range(runs):
        began = time.perf_counter()
        a @ a
        seconds.append(time.perf_counter() - began)
    return 2 * size**3 / sorted(seconds)[runs // 2]


TRAFFIC = """
import time, torch
from quant_dllm.distributed import processes, broadcast_tensors, rank
with processes():
    t = {"t": torch.zeros(4 << 20)}
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        broadcast_tensors(t if rank() == 0 else None, 0, torch.device("cpu"))
        seconds.append(time.perf_counter() - began)
    if rank() == 0:
        print(4 * (4 << 20) / sorted(seconds)[2])
"""


def exchange() -> float:
    """Measure B: bytes/s of a broadcast between two processes of this machine."""
    env = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29517"}
    ranks = [
        subprocess.Popen([sys.executable, "-c", TRAFFIC], env=env | {"RANK": str(rank)},
                         stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]  # fmt: skip
    said = [process.communicate()[0] for process in ranks]
    return float(said[0])


def measure(recipe: str, sequences: int, ranks: int, args: argparse.Namespace, out: Path) -> Record:
    """Quantize with so many processes of one thread each."""
    model = args.model
    command = [
        sys.executable, "-m", "quant_dllm.cli.main", "quantize", model, "-o", str(out), "--json",
        "-r", recipe, "--gpus", str(ranks), "--set", f"calibration.sequences={sequences}",
        "--set", f"calibration.length={args.length}",
    ]  # fmt: skip
    env = os.environ | {"OMP_NUM_THREADS": "1", "QUANT_DLLM_KERNEL": "reference"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=env)
    if done.returncode:
        sys.exit(done.returncode)
    manifest = json.loads((out / "quant_dllm.json").read_text())
    return {
        "what": "scale", "model": model, "recipe": recipe, "ranks": ranks,
        "sequences": sequences, "length": args.length, "seconds": manifest["seconds"],
        "solving_s": sum(layer["seconds"] for layer in manifest["layers"]),
        "peak_resident_bytes": manifest["peak_memory"], "digests": runs.digests(out),
    } | records.where()  # fmt: skip


def shape_of(model: str) -> Shape:
    """Read the shape of a dense model."""
    config = open_model(model).config
    return dense(model, config.blocks, config.width, config.mlp_width)


def fit(ones: list[Record], shape: Shape) -> Machine:
    """Fit c, s and e to the runs of one process, the one on the least text first."""
    flops = ones[-1]["flops"]
    bare = Machine(flops, ones[-1]["bytes_per_s"], 0.0, 0.0)
    work = shape.blocks * sum(
        n * out * inputs**2 for stage in shape.stages for out, inputs, n in stage
    )
    texts = [sum(bare.seconds(shape, 1, r["sequences"] * r["length"]).values()) for r in ones]
    others = [r["seconds"] - r["solving_s"] for r in ones]
    text = (others[-1] - others[0]) / (texts[-1] - texts[0])
    rest = max(0.0, others[-1] - text * texts[-1]) / shape.blocks
    solver = sum(r["solving_s"] for r in ones) / len(ones) * flops / work
    return replace(bare, solver=solver, rest_s=rest, text=text)


def report(found: list[Record]) -> str:
    """Format what was measured beside what is predicted, recipe after recipe."""
    rows = ["| recipe | tokens | processes | seconds | predicted | off by | GB each | equal |",
            "|---|--:|--:|--:|--:|--:|--:|---|"]  # fmt: skip
    fitted: dict[str, Machine] = {}
    for recipe in dict.fromkeys(r["recipe"] for r in found):
        some = sorted(
            (r for r in found if r["recipe"] == recipe), key=lambda r: (r["ranks"], r["sequences"])
        )
        ones = {r["sequences"]: r for r in some if r["ranks"] == 1}
        shape = shape_of(some[0]["model"])
        fitted[recipe] = here = fit(list(ones.values()), shape)
        for r in some:
            told = sum(here.seconds(shape, r["ranks"], r["sequences"] * r["length"]).values())
            off = "fitted" if r["ranks"] == 1 else f"{told / r['seconds'] - 1:+.0%}"
            equal = "yes" if r["digests"] == ones[r["sequences"]]["digests"] else "**no**"
            rows.append(
                f"| {recipe} | {r['sequences']} × {r['length']} | {r['ranks']} | "
                f"{r['seconds']:.1f} | {told:.1f} | {off} | {r['peak_resident_bytes'] / 1e9:.2f} | "
                f"{equal} |"
            )
    first, (recipe, here) = found[0], next(iter(fitted.items()))
    about = [f"`{first['model']}`, one thread a process; {first['processor']}, commit "
             f"{first['commit']}, {first['date']}.",
             *(f"{name}: F = {m.flops / 1e9:.0f} GFLOP/s, B = {m.bytes_per_s / 1e9:.2f} GB/s, "
               f"c = {m.solver:.0f}, s = {m.rest_s:.2f} s a block, e = {m.text:.1f}."
               for name, m in fitted.items())]  # fmt: skip
    return "\n".join([*rows, "", *about, "", *_larger(recipe, here)])


def _larger(recipe: str, here: Machine) -> list[str]:
    """Predict what no machine here can run."""
    gpu = replace(H100, solver=here.solver)
    rows = [f"Predicted with assumed, not measured, speeds of an H100, for 128 × 4096 tokens and "
            f"`{recipe}`:", "",
            "| model | GPUs | hours | forward | moments | solving | traffic | the rest |",
            "|---|--:|--:|--:|--:|--:|--:|--:|"]  # fmt: skip
    for big in (LLADA, LARGE):
        for ranks in (1, 8, 64):
            parts = gpu.seconds(big, ranks, 128 * 4096)
            cells = " | ".join(f"{seconds / sum(parts.values()):.0%}" for seconds in parts.values())
            hours = sum(parts.values()) / 3600
            rows.append(f"| {big.name} | {ranks} | {hours:.2f} | {cells} |")
    return rows


def measured(args: argparse.Namespace) -> list[Record]:
    """Run one process and several, on a quarter of the text and on all of it."""
    speeds = {"flops": arithmetic(), "bytes_per_s": exchange()}
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for recipe, ranks, part in product(args.recipe or RECIPES, args.ranks or [1, 2], (4, 1)):
            out = Path(folder) / "out"
            record = measure(recipe, args.sequences // part, ranks, args, out) | speeds
            shutil.rmtree(out)
            print(json.dumps(record), file=sys.stderr, flush=True)
            found.append(record)
            if args.record:
                with RESULTS.open("a") as file:
                    records.append(file, record)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Several processes against one.")
    parser.add_argument("--model", default="tiny", help="a dense one")
    parser.add_argument("--recipe", action="append", help=f"again for more; {', '.join(RECIPES)}")
    parser.add_argument("--sequences", type=int, default=128)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--ranks", type=int, action="append", help="processes; again for more")
    parser.add_argument("--write", action="store_true", help="write the tables, run nothing")
    parser.add_argument("--record", action="store_true", help=f"add to {RESULTS.name}")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.write:
        records.write_between(PAGE, BEGIN, END, report(records.read(RESULTS)))
    else:
        print(report(measured(args)))


if __name__ == "__main__":
    assert locate("tiny").is_dir()
    main()
