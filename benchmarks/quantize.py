"""Seconds that a linear layer takes to quantize, by every registered method, on this machine.

    python benchmarks/quantize.py                          # 4096x4096 and 4096x12288, three runs
    python benchmarks/quantize.py --quick                  # small layers, one run, nothing kept
    python benchmarks/quantize.py --public VENV/bin/python # and GPTQ beside a public one
    python benchmarks/quantize.py --tables                 # the tables, of what is recorded

A measurement is one JSON object: medians over runs that take turns, so that a machine that slows
down slows all of them. A layer is timed as the pipeline would quantize the first of its stage:
factoring the Hessian, what the method searches for the stage, allocating bits, rounding. Layers of
one stage share the factor; `inverse_factor` is timed by itself, to be subtracted for the others.

The public GPTQ is llmcompressor's, in an environment of its own:

    python3 -m venv VENV
    VENV/bin/pip install torch==2.13.0 llmcompressor
"""

import argparse
import json
import math
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch

import records
from public_gptq import PublicGPTQ
from quant_dllm.quantizers.base import ScalesInputs
from quant_dllm.recipe import QUANTIZERS, Recipe
from quant_dllm.report.table import markdown
from quant_dllm.statistics.hessian import inverse_factor
from quant_dllm.statistics.layer import LayerStatistics, Needs, output_error
from quant_dllm.weights.base import QuantizedWeight

RESULTS, PAGE = records.RESULTS / "quantize.jsonl", records.ROOT / "docs" / "methods.md"
BEGIN, END = "<!-- seconds: made by benchmarks/quantize.py --tables -->", "<!-- end of seconds -->"
RECIPES = (
    "rtn-2bit", "hqq-2bit", "awq-2bit", "gptq-2bit", "gptaq-2bit", "slim-llm-2bit", "billm",
    "arb-llm", "quant-dllm-2bit-release", "quant-dllm-2bit-paper", "ladder-2-scales",
)  # fmt: skip
OURS, PUBLIC = (
    3.0,
    1.2,
)  # most of GPTQ's time that DAQ may take, and of a public GPTQ's that ours may
GPTQ, BESIDE = "gptq-2bit", "gptq_beside_public"
SHAPES = [(4096, 4096), (4096, 12288)]  # [out, in]: LLaDA-8B's attention, and its MLP's way down
QUICK_SHAPES = [(256, 256), (256, 768)]
EVERYTHING = Needs.HESSIAN | Needs.DRIFT | Needs.SAMPLES


@dataclass(frozen=True)
class Layer:
    """A synthetic layer and what calibration would leave of it."""

    weight: torch.Tensor
    stats: LayerStatistics

    @classmethod
    def make(cls, out: int, inputs: int, tokens: int) -> "Layer":
        """Draw a Gaussian weight and inputs [tokens, in] of which neighbours are correlated."""
        dice = torch.Generator().manual_seed(0)
        x = torch.randn(tokens, inputs, generator=dice)
        x += x.roll(1, dims=1) + 0.5 * x.roll(2, dims=1)
        full = x + 0.1 * torch.randn(tokens, inputs, generator=dice)
        stats = LayerStatistics.gather([x], 0.01, EVERYTHING, [full])
        return cls(torch.randn(out, inputs, generator=dice), stats)

    @property
    def name(self) -> str:
        """Format the shape as out x in."""
        return "x".join(map(str, self.weight.shape))

    def fresh(self) -> LayerStatistics:
        """Return statistics whose Hessian nobody has factored yet."""
        return replace(self.stats)


def quantize(recipe: Recipe, layer: Layer) -> QuantizedWeight:
    """Quantize a layer as the first of its stage."""
    _, precision, quantizer = recipe.build()
    weight, stats = layer.weight, layer.fresh()
    if isinstance(quantizer, ScalesInputs):
        s = quantizer.input_scale([weight], stats, precision.bits, precision.block_size)
        weight, stats = weight * s, stats.scaled(1 / s)
    bits = precision.allocate(weight, stats)
    return quantizer.quantize(weight, stats, bits, precision.block_size)


def clock(work: Callable[[], Any]) -> float:
    """Return the seconds that some work takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def take_turns(works: dict[str, Callable[[], float]], runs: int) -> dict[str, list[float]]:
    """Have every work measured once before any is measured again; the order turns round."""
    seconds = defaultdict(list)
    for run in range(runs):
        for name in list(works)[:: -1 if run % 2 else 1]:
            seconds[name].append(works[name]())
            print(f"{name}: {seconds[name][-1]:.3f} s", file=sys.stderr)
    return seconds


def spread(seconds: list[float]) -> dict[str, Any]:
    """Return the median, the interquartile range and the number of runs."""
    quarters = statistics.quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else None
    return {
        "median_s": round(statistics.median(seconds), 4),
        "iqr_s": round(quarters[2] - quarters[0], 4) if quarters else None,
        "runs": len(seconds),
    }


def measure_methods(layer: Layer, names: list[str], runs: int) -> list[dict[str, Any]]:
    """Time the factor and every recipe on one layer."""
    recipes = {name: Recipe.load(name) for name in names}
    works: dict[str, Callable[[], float]] = {
        "inverse_factor": lambda: clock(lambda: inverse_factor(layer.stats.hessian, 0.01))
    }
    for name, recipe in recipes.items():
        works[name] = lambda recipe=recipe: clock(lambda: quantize(recipe, layer))
    took = take_turns(works, runs)
    factor = {"what": "inverse_factor", "layer": layer.name} | spread(took["inverse_factor"])
    return [factor] + [
        {"what": "quantize_layer", "layer": layer.name, "recipe": name,
         "quantizer": recipe.quantizer.name, **spread(took[name]),
         **times(took[name], took.get(GPTQ))}
        for name, recipe in recipes.items()
    ]  # fmt: skip


def times(took: list[float], unit: list[float] | None) -> dict[str, float]:
    """Return how often GPTQ's time it took, by the median of turns; nothing if that did not run."""
    ratios = [a / b for a, b in zip(took, unit or (), strict=bool(unit))]
    return {"times_gptq": round(statistics.median(ratios), 3)} if ratios else {}


def measure_public(layer: Layer, python: str, runs: int) -> dict[str, Any]:
    """Time our GPTQ and the public one in turns, on the same Hessian, bits, grids and threads."""
    bits, size = 2, 128
    recipe = Recipe.load("gptq-2bit").override(
        {"precision.bits": bits, "precision.block_size": size, "quantizer.static_groups": True}
    )
    with PublicGPTQ(python, layer.weight, layer.stats.hessian, bits, size) as public:
        public.seconds()  # neither pays for what is loaded or compiled on first use
        ours = quantize(recipe, layer).dequantize()
        took = take_turns(
            {"ours": lambda: clock(lambda: quantize(recipe, layer)), "public": public.seconds}, runs
        )
        theirs = public.values()
    ratios = [p / o for o, p in zip(took["ours"], took["public"], strict=True)]
    return {
        "what": BESIDE,
        "layer": layer.name,
        "public": public.version,
        "ours": spread(took["ours"]),
        "theirs": spread(took["public"]),
        "median_ratio": round(statistics.median(ratios), 3),
        "error_ours": output_error(layer.weight, ours, layer.stats),
        "error_theirs": output_error(layer.weight, theirs, layer.stats),
    }


def measure(layer: Layer, args: argparse.Namespace, runs: int) -> Iterator[dict[str, Any]]:
    """Make what is asked for on one layer."""
    if not args.only_public:
        yield from measure_methods(layer, args.recipe or RECIPES, runs)
    if args.public:
        yield measure_public(layer, args.public, runs)


def tables(found: list[dict[str, Any]]) -> str:
    """Write the newest record of each recipe and layer, its multiple of GPTQ's time, and musts."""
    layers = list(dict.fromkeys(r["layer"] for r in found))
    timed = {
        (r.get("recipe", "factor"), r["layer"]): r for r in found if r["what"] != BESIDE
    }  # fmt: skip
    lines = []
    for name in dict.fromkeys(name for name, _ in timed):
        cells = [multiple(timed, name, layer) for layer in layers]
        lines.append([f"`{name}`" if name in RECIPES else "the factor alone", *chain(*cells)])
    heads = [(f"{layer}, s", "× GPTQ") for layer in layers]
    beside = {r["layer"]: r for r in found if r["what"] == BESIDE}
    theirs = [
        [r["layer"], seconds(r["ours"]), f"{r['public']}: {seconds(r['theirs'])}",
         f"{1 / r['median_ratio']:.2f}{missed(1 / r['median_ratio'], PUBLIC)}",
         f"{r['error_ours']:.4f}", f"{r['error_theirs']:.4f}"]
        for r in beside.values()
    ]  # fmt: skip
    where = {f"{r['processor']}, {r['threads']} threads, torch {r['torch']}" for r in found}
    counts = {r["runs"] if "runs" in r else r["ours"]["runs"] for r in found}
    runs = " or ".join(map(str, sorted(counts)))
    columns = ["layer", "ours, s", "public, s", "ours / public", "error", "theirs"]
    return (
        f"Median ± interquartile range of {runs} runs; {'; '.join(sorted(where))}.\n"
        f"DAQ in the paper's form and in its code's must take at most {OURS} × GPTQ.\n\n"
        f"{markdown(['recipe', *chain(*heads)], lines)}\n"
        f"Our GPTQ must take at most {PUBLIC} × the public one's time. Error is the share of the "
        f"layer's output energy that is wrong.\n\n{markdown(columns, theirs)}"
    )


def multiple(timed: dict[tuple[str, str], dict], name: str, layer: str) -> tuple[str, str]:
    """Format seconds, and how often GPTQ's of the same run they are."""
    record = timed.get((name, layer))
    if record is None:
        return "–", "–"
    if "times_gptq" not in record:
        return seconds(record), "–"
    ratio = record["times_gptq"]
    bound = OURS if name.endswith(("-release", "-paper")) else math.inf
    return seconds(record), f"{ratio:.2f}{missed(ratio, bound)}"


def seconds(record: dict[str, Any]) -> str:
    return f"{record['median_s']:.2f} ± {record['iqr_s'] or math.nan:.2f}"


def missed(ratio: float, bound: float) -> str:
    return " (missed)" if ratio > bound else ""


def shape(text: str) -> tuple[int, int]:
    """Read ``OUTxIN``."""
    out, _, inputs = text.partition("x")
    return int(out), int(inputs)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Seconds a layer, by method.")
    parser.add_argument("--quick", action="store_true", help="small layers, one run")
    parser.add_argument("--shape", type=shape, action="append", help="OUTxIN; again for more")
    parser.add_argument("--recipe", action="append", choices=RECIPES, help="only these")
    parser.add_argument("--runs", type=int, help="measurements of each; 3, or 1 if quick")
    parser.add_argument("--tokens", type=int, default=4096, help="tokens behind the Hessian")
    parser.add_argument("--threads", type=int, help="threads of torch; its own choice if not given")
    parser.add_argument("--public", metavar="PYTHON", help="interpreter that has llmcompressor")
    parser.add_argument("--only-public", action="store_true", help="no other measurement")
    parser.add_argument("--tables", action="store_true", help=f"write {PAGE.name}, time nothing")
    parser.add_argument("--out", type=Path, help=f"JSON lines; {RESULTS.name} unless quick")
    return parser.parse_args()


@torch.no_grad()
def main() -> None:
    """Measure, print every record, and add it to the results."""
    covered = {Recipe.load(name).quantizer.name for name in RECIPES}
    assert covered == set(QUANTIZERS.targets), "every registered method has a recipe here"
    args = arguments()
    if args.only_public and not args.public:
        sys.exit("--only-public without --public; an interpreter is wanted. Name one: --public …")
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.tables:
        records.write_between(PAGE, BEGIN, END, tables(records.read(RESULTS)))
        return
    out = args.out or (None if args.quick else RESULTS)
    runs = args.runs or (1 if args.quick else 3)
    around = records.where() | {"threads": torch.get_num_threads()}
    for rows, inputs in args.shape or (QUICK_SHAPES if args.quick else SHAPES):
        layer = Layer.make(
            rows, inputs, min(args.tokens, 2 * inputs) if args.quick else args.tokens
        )
        with out.open("a") if out else nullcontext() as file:
            for record in measure(layer, args, runs):
                print(json.dumps(records.append(file, record | around)), flush=True)


if __name__ == "__main__":
    main()
