"""Time the native kernel against torch, weights cold, and say which goals are met.

    python benchmarks/kernels.py                     everything, minutes: results/kernels-UNIT.jsonl
    python benchmarks/kernels.py --quick --json      ratios of 4096→4096 at 1, 32, 128 tokens
    python benchmarks/kernels.py --tokens 1          one count of tokens again, the rest is kept
    python benchmarks/kernels.py --tables            write the records into docs/kernels.md

``QUANT_DLLM_CPU`` names the unit. Torch takes the widest instructions of the processor; to see what
the same ones give, limit it: ``ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16`` beside ``avx512``.

Kernels take turns within one run, five calls a turn: in a model the calls of one kernel follow each
other. Weights are cold: each call takes another copy, and the copies fill 192 MB and more, all of
them read once before and in large pages, torch's too: in small ones the state of the machine's
memory decides, up to 4 times at one token. One
thread is timed by the processor time of the thread, which another job does not change much; two by
the clock, without the calls that the system interrupted. Exit status 1: a must is missed.
"""

import argparse
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import torch
import torch.nn.functional as F

import ceiling
import kernel_tables
import records
from quant_dllm.kernels import native, pages
from quant_dllm.weights.random import random_weight

SHAPES = ((4096, 4096), (4096, 12288), (12288, 4096))  # in, out
TOKENS = (1, 8, 32, 128, 512)
QUICK_TOKENS = (1, 32, 128)
COLD = 192 << 20  # bytes
RUNS, WARM_UP, MOST_DROPPED = 30, 3, 30
TURN = 5  # calls of a kernel in a row
ISA = "ONEDNN_MAX_CPU_ISA"  # what torch may use
MUST = {  # times torch bfloat16
    "amx": {1: 10, 8: 4, 32: 2.5, 128: 2.0, 512: 1.8},
    "avx512": {1: 10, 8: 4, 32: 2.5, 128: 2.0, 512: 1.8},
    "avx2": {1: 8, 8: 2.6, 32: 1.5, 128: 1.1, 512: 1.0},
}


@dataclass(frozen=True)
class Kernel:
    """One way to multiply: a call for each cold copy of the weight."""

    name: str
    order: int
    calls: list[Callable[[torch.Tensor], torch.Tensor]]


def unit() -> str:
    """Name the unit that is used."""
    return list(native.units())[native.unit()]


def packed(inputs: int, out: int, order: int, precise: bool = False) -> Kernel:
    """Pack a random weight, as often as it takes to fill the caches."""
    weight = random_weight(out, inputs, 128, [order] * (inputs // 128))
    first = native.prepare(weight, precise)
    copies = [pages.room(first.nbytes).copy_(first.packed) for _ in range(-(-COLD // first.nbytes))]
    facts = [out, first.unit, int(precise)]
    name = f"{unit()}{'-precise' if precise else ''}"
    calls = [partial(_operator, copy, facts) for copy in copies]
    return Kernel(name, order, calls)


def _operator(copy: torch.Tensor, facts: list[int], x: torch.Tensor) -> torch.Tensor:
    return torch.ops.quant_dllm.linear(x, [copy], None, facts)


def dense(inputs: int, out: int, dtype: torch.dtype) -> Kernel:
    """Make the weight that torch multiplies by, in its own dtype."""
    weight = torch.randn(out, inputs).to(dtype)
    copies = [
        pages.room(weight.nbytes).view(dtype).view(out, inputs).copy_(weight)
        for _ in range(max(2, -(-COLD // weight.nbytes)))
    ]
    name = f"torch {str(dtype).removeprefix('torch.')}"
    return Kernel(name, 0, [lambda x, w=w, dtype=dtype: F.linear(x.to(dtype), w) for w in copies])


def timed(kernels: list[Kernel], x: torch.Tensor, runs: int) -> dict[str, list[float]]:
    """Time all kernels in turns, in seconds a call."""
    threads = torch.get_num_threads()
    clock = time.thread_time if threads == 1 else time.perf_counter
    seconds: dict[str, list[float]] = {kernel.name: [] for kernel in kernels}
    dropped, turn = 0, 0
    while min(map(len, seconds.values())) < runs:
        for kernel in kernels:
            for i in range(turn * TURN, (turn + 1) * TURN):
                call = kernel.calls[i % len(kernel.calls)]
                interrupted, began = _interruptions(), clock()
                call(x)
                taken = clock() - began
                clean = threads == 1 or _interruptions() == interrupted or dropped >= MOST_DROPPED
                dropped += not clean
                if i >= WARM_UP and clean:
                    seconds[kernel.name].append(taken)
        turn += 1
    return seconds


def _interruptions() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def read_all(kernels: list[Kernel], inputs: int) -> None:
    """Read all copies in turns, so that none is newer in a cache for being made last."""
    x = torch.randn(1, inputs, dtype=torch.bfloat16)
    for i in range(max(len(kernel.calls) for kernel in kernels)):
        for kernel in kernels:
            kernel.calls[i % len(kernel.calls)](x)


def cases(quick: bool) -> Iterator[tuple[int, int, int, list[Kernel]]]:
    """Yield threads, shape and kernels; copies of one shape at a time are in memory."""
    both = (torch.bfloat16, torch.float32)
    for inputs, out in SHAPES[:1] if quick else SHAPES:
        kernels = [packed(inputs, out, 2), *(dense(inputs, out, dtype) for dtype in both)]
        read_all(kernels, inputs)
        for threads in (1,) if quick else (1, 2):
            yield threads, inputs, out, kernels
    if not quick:
        others = [packed(4096, 4096, 1), packed(4096, 4096, 3), packed(4096, 4096, 2, True)]
        for kernel in others:
            read_all([kernel], 4096)
            yield 1, 4096, 4096, [kernel]


def measure(file: TextIO | None, quick: bool, all_tokens: Sequence[int]) -> list[dict[str, Any]]:
    """Run all cases; return their records."""
    found, facts = [], records.where() | {"torch_isa": os.environ.get(ISA)}
    for threads, inputs, out, kernels in cases(quick):
        torch.set_num_threads(threads)
        for tokens in all_tokens:
            x = torch.randn(tokens, inputs, dtype=torch.bfloat16)
            seconds = timed(kernels, x, RUNS)
            for kernel in kernels:
                what = {"what": "binary_linear", "backend": kernel.name, "order": kernel.order,
                        "in": inputs, "out": out, "tokens": tokens, "threads": threads,
                        "clock": "thread" if threads == 1 else "wall"}  # fmt: skip
                record = what | records.spread(seconds[kernel.name]) | facts
                found.append(records.append(file, record))
    return found


def measure_rest(file: TextIO, facts: dict[str, Any]) -> None:
    """Reading memory; packing, and the ceiling of the instructions, on one thread."""
    numbers = torch.zeros(COLD >> 1)
    for threads in (2, 1):
        torch.set_num_threads(threads)
        rate = numbers.nbytes / statistics.median(_wall_seconds(numbers.sum) for _ in range(RUNS))
        records.append(file, {"what": "read", "threads": threads, "runs": RUNS,
                              "median_bytes_per_s": round(rate)} | facts)  # fmt: skip
    weight = random_weight(4096, 4096, 128, [2] * 32)
    size = sum(tensor.nbytes for tensor in weight.tensors().values())
    rates = sorted(size / _cpu_seconds(lambda: native.prepare(weight)) for _ in range(RUNS))
    middle = rates[len(rates) // 2]
    records.append(file, {"what": "pack", "unit": unit(), "bytes": size, "runs": RUNS,
                          "median_bytes_per_s": round(middle)} | facts)  # fmt: skip
    if unit() in ceiling.FLAGS:
        rate = ceiling.lookups_per_second(unit())
        records.append(file, {"what": "ceiling", "unit": unit(), "runs": ceiling.RUNS,
                              "lookups_per_s": round(rate)} | facts)  # fmt: skip


def measure_into(path: Path, tokens: list[int] | None) -> list[dict[str, Any]]:
    """Run all cases; of a file that is there, keep what is not measured again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tokens = tokens or []
    known = records.read(path) if tokens and path.exists() else []
    kept = [r for r in known if "tokens" in r
            and ("llama" in r["backend"] or r["tokens"] not in tokens)]  # fmt: skip
    with path.open("w") as file:
        found = measure(file, quick=False, all_tokens=tokens or TOKENS)
        for record in kept:
            records.append(file, record)
        measure_rest(file, records.where())
    return found


def _wall_seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _cpu_seconds(call: Callable[[], object]) -> float:
    began = time.thread_time()
    call()
    return time.thread_time() - began


def ratios(found: list[dict[str, Any]], reference: str = "torch bfloat16") -> dict[tuple, float]:
    """Divide the medians of a reference by ours: by in, out, threads and tokens, order 2."""

    def key(record: dict[str, Any]) -> tuple:
        return record["in"], record["out"], record["threads"], record["tokens"]

    theirs = {key(r): r["median_us"] for r in found if r["backend"] == reference}
    ours = {key(r): r["median_us"] for r in found
            if r["order"] == 2 and not r["backend"].endswith("precise")}  # fmt: skip
    return {k: theirs[k] / ours[k] for k in ours if k in theirs}


def main() -> int:
    """Run; return 1 where a must is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="JSON lines; kernels-UNIT.jsonl if not given")
    parser.add_argument("--quick", action="store_true", help="4096→4096, one thread, no records")
    parser.add_argument("--tokens", type=int, action="append", help="only these; may be repeated")
    parser.add_argument("--json", action="store_true", help="print ratios as one JSON object")
    parser.add_argument("--tables", action="store_true", help="write docs/kernels.md, time nothing")
    options = parser.parse_args()
    if options.tables:
        files = sorted(records.RESULTS.glob("kernels-*.jsonl"))
        kernel_tables.write([records.read(path) for path in files], MUST)
        kernel_tables.write_model(records.read(records.RESULTS / "bench.jsonl"))
        return 0
    if reason := native.missing():
        print(f"benchmarks/kernels.py: no native library: {reason}", file=sys.stderr)
        return 2
    with torch.inference_mode():
        if options.quick:
            found = measure(None, quick=True, all_tokens=QUICK_TOKENS)
        else:
            out = options.out or records.RESULTS / f"kernels-{unit()}.jsonl"
            found = measure_into(out, options.tokens)
    must, reached = MUST.get(unit(), {}), ratios(found)
    missed = [k for k, ratio in reached.items() if ratio < must.get(k[3], 0)]
    if options.json:
        print(json.dumps(summary(found, missed)))
    else:
        for (inputs, out, threads, tokens), ratio in reached.items():
            print(f"{inputs:>6}→{out:<6} {threads} threads {tokens:>4} tokens {ratio:6.2f}× torch "
                  f"bfloat16, must {must.get(tokens, 0)}×")  # fmt: skip
    return 1 if missed else 0


def summary(found: list[dict[str, Any]], missed: list[tuple]) -> dict[str, Any]:
    """Put the ratios of 4096→4096 into JSON's types."""
    by = {
        name: {str(k[3]): round(ratio, 2) for k, ratio in ratios(found, f"torch {name}").items()}
        for name in ("bfloat16", "float32")
    }
    must = {str(tokens): ratio for tokens, ratio in MUST.get(unit(), {}).items()}
    return {
        "unit": unit(), "threads": 1, "shape": "4096→4096", "runs": RUNS,
        "times_torch_bfloat16": by["bfloat16"], "times_torch_float32": by["float32"],
        "must": {tokens: must[tokens] for tokens in by["bfloat16"] if tokens in must},
        "missed": [str(key[3]) for key in missed], "processor": records.processor(),
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
