"""Records of measurements: a JSON object a line, units in the keys, the machine beside them."""

import json
import platform
import statistics
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import torch

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def where() -> dict[str, Any]:
    """Say on what and with which commit it is measured."""
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    return {
        "commit": commit or "unknown",
        "date": time.strftime("%Y-%m-%d"),
        "processor": processor(),
        "torch": torch.__version__,
    }


def processor() -> str:
    """Name the processor, the cores of this machine, and its widest vectors."""
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text().splitlines() if facts.is_file() else []
    told = {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
    flags = told.get("flags", "").split()
    vectors = next((n for n in ("avx512_vnni", "avx512f", "avx2") if n in flags), "")
    cores = sum(line.startswith("processor") for line in lines)
    name = told.get("model name", platform.processor() or platform.machine())
    return ", ".join(filter(None, (name, f"{cores} cores" if cores else "", vectors)))


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """Return median, interquartile range and minimum in µs, and how many runs there were."""
    low, middle, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return {
        "median_us": round(middle * 1e6, 2),
        "iqr_us": round((high - low) * 1e6, 2),
        "min_us": round(min(seconds) * 1e6, 2),
        "runs": len(seconds),
    }


def append(file: TextIO | None, record: dict[str, Any]) -> dict[str, Any]:
    """Write one record at once, so that a run cut short keeps what it had."""
    if file is not None:
        file.write(json.dumps(record, ensure_ascii=False) + "\n")
        file.flush()
    return record


def read(path: Path) -> list[dict[str, Any]]:
    """Read all records of a file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def fill(page: Path, begin: str, end: str, text: str) -> None:
    """Replace what stands between two marks of a page."""
    before, _, rest = page.read_text().partition(begin)
    _, _, after = rest.partition(end)
    page.write_text(f"{before}{begin}\n\n{text}\n{end}{after}")
