"""What `plan --time` says of a run, held against the run that follows at once.

    python benchmarks/plan.py              # all cases, then the table of docs/how-to.md
    python benchmarks/plan.py gptq-2bit    # one case
    python benchmarks/plan.py --tables     # the table alone

A plan and its run are minutes apart, and on a machine that others use a second is not worth the
same in both. The processor's own seconds are: ``--clock processor --threads 1`` counts those.
"""

import argparse
import json
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch

import records
from quant_dllm.pipeline.quantize import quantize
from quant_dllm.planning.plan import plan
from quant_dllm.report.table import markdown

RESULTS = records.RESULTS / "plan.jsonl"
PAGE = records.ROOT / "docs" / "how-to.md"
BEGIN, END = "<!-- table: made by benchmarks/plan.py --tables -->", "<!-- end of table -->"
CLOCKS = {"processor": time.process_time, "wall": time.monotonic}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "rtn-2bit": ("rtn-2bit", {}),
    "gptq-2bit": ("gptq-2bit", {}),
    "gptq-2bit, 512 sequences": ("gptq-2bit", {"calibration.sequences": 512}),
    "quant-dllm-2bit-untuned": ("quant-dllm-2bit-untuned", {}),
    "quant-dllm-2bit": ("quant-dllm-2bit", {}),
}


def compare(case: str, clock: str, threads: int) -> dict[str, Any]:
    """Plan a run of `tiny`, run it, each in a process of its own, and say both."""
    recipe, settings = CASES[case]
    spawn = multiprocessing.get_context("spawn")
    with (
        TemporaryDirectory() as folder,
        ProcessPoolExecutor(
            1, spawn, torch.set_num_threads, (threads,), max_tasks_per_child=1
        ) as alone,
    ):
        found = {}
        for part in (planned, ran):
            found |= alone.submit(part, case, clock, Path(folder) / "out").result()
    about = {"what": "plan", "case": case, "recipe": recipe, "settings": settings, "clock": clock}
    return about | {"threads": threads} | found | records.where()


def planned(case: str, clock: str, out: Path) -> dict[str, Any]:
    """Plan, with a timed block and without."""
    recipe, settings = CASES[case]
    with patch("time.monotonic", CLOCKS[clock]):
        began = time.monotonic()
        told = plan("tiny", recipe, settings=settings, out=out, timed=True)
        planning = time.monotonic() - began
        untimed = plan("tiny", recipe, settings=settings, out=out)
    return {
        "planning_s": round(planning, 2), "planned_s": round(told.seconds or 0.0, 2),
        "planned_weight_bytes": told.weight_bytes, "planned_disk_bytes": told.disk_bytes,
        "planned_memory_bytes": told.memory_bytes, "untimed_memory_bytes": untimed.memory_bytes,
        "planned_stored_bits": round(told.bits.stored, 4),
    }  # fmt: skip


def ran(case: str, clock: str, out: Path) -> dict[str, Any]:
    """Run, and look at what is there."""
    recipe, settings = CASES[case]
    with patch("time.monotonic", CLOCKS[clock]):
        record = quantize("tiny", out, recipe, settings=settings)
    return {
        "measured_s": record.seconds,
        "measured_weight_bytes": sum(f.stat().st_size for f in out.glob("*.safetensors")),
        "measured_disk_bytes": sum(f.stat().st_size for f in out.iterdir()),
        "measured_memory_bytes": record.peak_memory,
        "measured_stored_bits": round(record.bits.stored, 4),
    }


def table(found: list[dict[str, Any]]) -> str:
    """Write a row for each case, the newest of each clock."""
    newest = {(r["case"], r["clock"]): r for r in found if r["case"] in CASES}
    rows = []
    for r in sorted(newest.values(), key=lambda r: [*CASES].index(r["case"])):
        seconds = r["planned_s"], r["measured_s"]
        weights = r["planned_weight_bytes"] / 1e6, r["measured_weight_bytes"] / 1e6
        disk = r["planned_disk_bytes"] / 1e6, r["measured_disk_bytes"] / 1e6
        memory = r["planned_memory_bytes"] / 1e6, r["measured_memory_bytes"] / 1e6
        rows.append([
            r["case"], f"{r['threads']}, {r['clock']}", f"{r['planning_s']:.1f}",
            _both(*seconds, 1), _both(*weights, 2), _both(*disk, 2), _both(*memory, 0),
        ])  # fmt: skip
    head = [
        "`tiny`",
        "threads, clock",
        "s to plan",
        "s",
        "MB of weights",
        "MB on disk",
        "MB of memory",
    ]
    machine = "; ".join(sorted({f"{r['processor']}, torch {r['torch']}" for r in newest.values()}))
    told = "Planned → measured, and by how much the plan was off"
    return f"{markdown(head, rows)}\n{told}; {machine}; one run each.\n"


def _both(planned: float, measured: float, digits: int) -> str:
    return f"{planned:.{digits}f} → {measured:.{digits}f}, {planned / measured - 1:+.0%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tables", action="store_true", help="only write the table")
    asked = parser.parse_args()
    for case in () if asked.tables else asked.cases or CASES:
        with RESULTS.open("a") as file:
            print(
                json.dumps(records.append(file, compare(case, asked.clock, asked.threads))),
                flush=True,
            )
    records.write_between(PAGE, BEGIN, END, table(records.read(RESULTS)))


if __name__ == "__main__":
    main()
