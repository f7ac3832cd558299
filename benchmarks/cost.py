"""What the default recipe costs: LLaDA-8B on one large GPU, counted; `tiny` here, timed.

    python benchmarks/cost.py count --record       # operations of every phase at true width
    python benchmarks/cost.py layer --record       # a layer of 4096 × 4096 rounded here
    python benchmarks/cost.py tiny --record        # `tiny` by the default and the untuned recipe

No GPU is timed. The code of each phase runs on a processor at LLaDA-8B's widths, with few rows or
tokens at two sizes; every operation that it takes is counted, and carried over to the true size.
Each is then as slow as its slowest of arithmetic, memory and the host that starts it; what a GPU
reaches of each is assumed (`ASSUMED`), and `HALF` halves all three. `results.py write` makes the
tables.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import torch

import records
from count import Device
from phases import TF32, WIDTH, correlated, read_seconds, tuned, tuned_blocks, untuned
from quant_dllm.pipeline.quantize import quantize
from quant_dllm.recipe import DEFAULT, Recipe

RESULTS = records.RESULTS / "cost.jsonl"
PEAK = {torch.bfloat16: 790e12, TF32: 395e12, torch.float32: 67e12}
ASSUMED = Device({t: f / 2 for t, f in PEAK.items()}, 0.7 * 4.3e12, 8e-6)
HALF = Device({t: f / 4 for t, f in PEAK.items()}, 0.35 * 4.3e12, 16e-6)


def count() -> Iterator[dict[str, Any]]:
    """Count all phases."""
    for name, seconds in read_seconds().items():
        yield {"what": "phase", "phase": name, "seconds": seconds,
               "seconds_half": 2 * seconds} | records.where()  # fmt: skip
    for name, calls, times in chain(tuned(), tuned_blocks(), untuned()):
        by_type = {t: times * sum(c.flops for c in calls if c.dtype == t) for t in PEAK}
        yield {
            "what": "phase", "phase": name, "bf16_flops": by_type[torch.bfloat16],
            "tf32_flops": by_type[TF32], "fp32_flops": by_type[torch.float32],
            "bytes": times * sum(c.moved for c in calls),
            "calls": times * len(calls), "seconds": times * ASSUMED.seconds(calls),
            "seconds_half": times * HALF.seconds(calls),
        } | records.where()  # fmt: skip


def layer() -> dict[str, Any]:
    """Time the rounding of a layer of 4096 × 4096 here, and a product of matrices beside it."""
    stats, quantizer = correlated(WIDTH), Recipe.load(DEFAULT).build()[2]
    weight = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(0))
    products = []
    for _ in range(5):
        began = time.process_time()
        weight @ weight
        products.append(time.process_time() - began)
    began, clock = time.process_time(), time.monotonic()
    quantizer.quantize(weight, stats, torch.full((WIDTH // 128,), 2), 128)
    spent, wall = time.process_time() - began, time.monotonic() - clock
    return {
        "what": "layer", "out": WIDTH, "in": WIDTH, "processor_s": round(spent, 2),
        "wall_s": round(wall, 2), "threads": torch.get_num_threads(),
        "product_flops_per_s": 2 * WIDTH**3 / sorted(products)[2],
    } | records.where()  # fmt: skip


def tiny(recipe: str) -> dict[str, Any]:
    """Time the whole recipe on ``tiny``."""
    with tempfile.TemporaryDirectory() as folder:
        began, clock = time.process_time(), time.monotonic()
        made = quantize("tiny", Path(folder) / "out", recipe)
        spent, wall = time.process_time() - began, time.monotonic() - clock
    return {
        "what": "tiny", "recipe": recipe, "processor_s": round(spent, 1), "wall_s": round(wall, 1),
        "tuning_wall_s": made.tuning and made.tuning.seconds, "threads": torch.get_num_threads(),
    } | records.where()  # fmt: skip


def main() -> None:
    """Count or time."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("verb", choices=("count", "layer", "tiny"))
    parser.add_argument("--record", action="store_true", help=f"add to {RESULTS.name}")
    parser.add_argument("--recipe", action="append", help="of `tiny`; both if not given")
    asked = parser.parse_args()
    found: Iterable[dict[str, Any]] = count()
    if asked.verb == "layer":
        found = [layer()]
    elif asked.verb == "tiny":
        found = (tiny(r) for r in asked.recipe or (DEFAULT, f"{DEFAULT}-untuned"))
    for record in found:
        print(json.dumps(record), flush=True)
        if asked.record:
            with RESULTS.open("a") as file:
                records.append(file, record)


if __name__ == "__main__":
    main()
