"""Sections of ``docs/results.md`` about what the default recipe must reach, made of the records.

`results.py write` puts them on the page.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import records
from quant_dllm.evaluation.compare import read_records
from quant_dllm.report.table import RATIOS, Row, Spread, markdown, rows
from tried import MODELS, left_out

DEFAULT, UNTUNED = "quant-dllm-2bit", "quant-dllm-2bit-untuned"
RELEASE, GPTQ = "quant-dllm-2bit-release", "gptq-2bit"
TO_REACH = "reach for "

Table = dict[str, Row]


def newest(name: str) -> Table:
    """Read the newest record of each recipe and seed of one model."""
    path = records.RESULTS / f"compare-{name}.jsonl"
    latest = {(r.name, r.seed): r for r in read_records(path).values()}
    return {row.name: row for row in rows(latest.values())}


def read(name: str) -> list[dict[str, Any]]:
    """Read the records of a file; none where there is no file."""
    path: Path = records.RESULTS / name
    return records.read(path) if path.is_file() else []


def text() -> str:
    """Write all sections for which there are records."""
    tables = {name: newest(name) for name in MODELS}
    parts = (figures(tables), every_ratio(tables), cost(), cloze(), left_out(tables))
    return "\n".join(part for part in parts if part)


def figures(tables: dict[str, Table]) -> str:
    """Hold the ladder's figures against what was wanted."""
    lines = []
    for about, limit, aim, of in GOALS:
        cells, met = [], []
        for table in tables.values():
            ratio, bits = of(table)
            cells.append(f"{ratio:.2f} ({bits})")
            met.append(ratio <= limit)
        wanted = f"≤ {limit} ×" + (f", {TO_REACH}{aim} ×" if aim else "")
        lines.append((about, wanted, *cells, "yes" if all(met) else "no"))
    file = file_bits()
    for name, bits in file.items():
        about, share = (
            f"file bits a weight for LLaDA-8B's shapes: {name}",
            bits / max(file.values()),
        )
        met = "yes" if share <= 0.6 else "no"
        wanted = "≤ 2.4, 0.6 × the paper's"
        lines.append((about, wanted, f"{bits:.2f}", f"{share:.2f} ×", met if share < 1 else "–"))
    columns = ("figure", "wanted", *MODELS.values(), "met")
    return (
        "## What the default must reach\n\n"
        "Excess bounds, means over the seeds, as ratios; in brackets stored bits a quantized "
        "weight, the default's against the other's.\n\n" + markdown(columns, lines)
    )


def _ratio(ours: str, theirs: Callable[[Table], str], beside: str) -> Callable[[Table], Any]:
    def of(table: Table) -> tuple[float, str]:
        ratio = table[ours].excess.mean / table[theirs(table)].excess.mean
        bits = f"{table[ours].stored_bits:.3f} against {table[beside].stored_bits:.3f}"
        return ratio, bits

    return of


def _better(table: Table) -> str:
    return min((RELEASE, GPTQ), key=lambda name: table[name].excess.mean)


GOALS = (
    ("excess of the default / the better of release and GPTQ, stored bits of the release",
     0.35, 0.2, _ratio(DEFAULT, _better, RELEASE)),
    ("excess of the default / the release's, stored bits of GPTQ",
     0.5, None, _ratio(DEFAULT, lambda _: RELEASE, GPTQ)),
    ("excess without tuning / the release's", 0.62, 0.5,
     _ratio(UNTUNED, lambda _: RELEASE, RELEASE)),
)  # fmt: skip


def file_bits() -> dict[str, float]:
    """Read the whole-file bits of LLaDA-8B's shapes."""
    return {r["recipe"]: r["file_bits"] for r in read("cost.jsonl") if r["what"] == "file bits"}


def every_ratio(tables: dict[str, Table]) -> str:
    """Show what tuning does at each mask ratio, seed by seed."""
    lines = []
    for name, table in tables.items():
        before = {run.seed: run.evaluation["kl_by_mask_ratio"] for run in table[UNTUNED].runs}
        pairs = [(r.evaluation["kl_by_mask_ratio"], before[r.seed]) for r in table[DEFAULT].runs]
        cells = [
            f"{Spread.of([a[r] for a, _ in pairs]).text(4)} from "
            f"{Spread.of([b[r] for _, b in pairs]).text(4)}" for r in RATIOS
        ]  # fmt: skip
        better = sum(a[r] < b[r] for a, b in pairs for r in RATIOS)
        lines.append((MODELS[name], *cells, f"{better} of {len(pairs) * len(RATIOS)}"))
    columns = ("KL, tuned from untuned", *(f"{float(r):.0%} masked" for r in RATIOS), "lower")
    return "### Tuning at every mask ratio\n\n" + markdown(columns, lines)


def cost() -> str:
    """Say what the recipe costs, measured and estimated."""
    found = read("cost.jsonl")
    runs = {r["recipe"]: r for r in found if r["what"] == "tiny"}
    lines = [
        (f"`{name}`", f"{r['wall_s']:.0f}", f"{r['processor_s']:.0f}", str(r["threads"]),
         r["processor"]) for name, r in runs.items()
    ]  # fmt: skip
    told = "## Cost\n\n"
    if lines:
        columns = ("whole recipe on `tiny`", "s", "processor s", "threads", "machine")
        told += markdown(columns, lines) + "\nAt most 360 s on two cores are wanted.\n\n"
    return told + large(found)


def large(found: list[dict[str, Any]]) -> str:
    """Estimate LLaDA-8B on one GPU from the counts."""
    phases = {r["phase"]: r for r in found if r["what"] == "phase"}
    phases = dict(sorted(phases.items(), key=lambda item: item[0].startswith("tuning")))
    memory = next((r for r in reversed(found) if r["what"] == "memory"), None)
    if not {"tuning: packed head, loss", "rounding: 4096 × 12288"} <= phases.keys():
        return _memory(memory)  # half a count is none
    lines = []
    for name, r in phases.items():
        ops = [f"{r[k] / 1e15:.2f}" if k in r else "–" for k in KINDS]
        moved = f"{r['bytes'] / 1e12:.1f}" if "bytes" in r else "–"
        calls = f"{r['calls'] / 1e6:.1f}" if "calls" in r else "–"
        lines.append((name, *ops, moved, calls, f"{r['seconds']:.0f}", f"{r['seconds_half']:.0f}"))
    for name, chosen in (
        ("without tuning", [r for p, r in phases.items() if not p.startswith("tuning")]),
        ("with tuning", list(phases.values())),
    ):
        sums = [sum(r[key] for r in chosen) for key in ("seconds", "seconds_half")]
        lines.append((f"**{name}**", "", "", "", "", "", *(f"{s / 60:.0f} min" for s in sums)))
    columns = ("LLaDA-8B, one GPU", "bf16 PFLOP", "TF32 PFLOP", "fp32 PFLOP", "TB",
               "million kernels", "s", "s, all at half")  # fmt: skip
    measured = next((r for r in reversed(found) if r["what"] == "layer"), None)
    return (
        "No GPU was to be had: this is an estimate. The code of each phase ran on a processor at "
        "the model's widths, and every operation was counted (`benchmarks/cost.py`). **Assumed** "
        "of an H200: half of 790 TFLOP/s in bfloat16, of 395 in TF32 (moments of 16-bit inputs, "
        "which lose nothing by it) and of 67 in float32, 70 % of "
        "4.3 TB/s, 8 µs from one kernel to the next, 2 GB/s of disk; an operation takes the "
        "longest of its three. The last column halves all of them. Up to 15 minutes without tuning "
        "and 120 with it are wanted.\n\n" + markdown(columns, lines) + "\n"
        + _measured(measured, phases) + _memory(memory)
    )  # fmt: skip


def _measured(r: dict[str, Any] | None, phases: dict[str, dict[str, Any]]) -> str:
    counted = phases.get("rounding: 4096 × 4096")
    if r is None or counted is None:
        return ""
    rate = counted["fp32_flops"] / (32 * 4) / r["processor_s"]  # 32 blocks of four such layers
    return (
        f"Measured here: a layer of {r['out']} × {r['in']} is rounded in {r['wall_s']:.0f} s "
        f"({r['processor_s']:.0f} of the processor, {r['threads']} threads, {r['processor']}), "
        f"{rate / 1e9:.0f} GFLOP/s a processor second where a product of matrices reaches "
        f"{r['product_flops_per_s'] / 1e9:.0f}: {rate / r['product_flops_per_s']:.0%}.\n\n"
    )


def _memory(r: dict[str, Any] | None) -> str:
    if r is None:
        return ""
    stages = [stage for stage in STAGES if stage in r]
    lines = [
        (part, *(f"{r[stage][part] / 1e9:.1f}" if part in r[stage] else "" for stage in stages))
        for part in dict.fromkeys(part for stage in stages for part in r[stage])
    ]
    sums = (f"{sum(r[stage].values()) / 1e9:.1f}" for stage in stages)
    lines.append(("**sum**", *sums))
    return (
        "Memory on the device, GB, added up from shapes, not measured; less than 16 are wanted.\n\n"
        + markdown(("", *stages), lines)
    )


KINDS = ("bf16_flops", "tf32_flops", "fp32_flops")
STAGES = ("rounding", "block tuning", "head", "tuning", "tuning, 16-bit model")


def cloze() -> str:
    """Show which of four sentences each model takes for the next."""
    found = {(r["model"], r["recipe"]): r for r in read("cloze.jsonl")}
    if not found:
        return ""
    lines = [
        (MODELS[model], recipe, f"{r['accuracy']:.1%} ± {r['stderr']:.1%}", str(r["items"]),
         str(r["draws"])) for (model, recipe), r in found.items()
    ]  # fmt: skip
    columns = ("model", "recipe", "accuracy ± standard error", "stories", "draws")
    return (
        "## Cloze\n\nWhich of four sentences goes on a held-out story, the other three being from "
        "other stories; a quarter is chance.\n\n" + markdown(columns, lines)
    )
