"""Write the README's table of what ``quant-dllm demo`` prints, without its seconds.

python benchmarks/demo.py

The demo measures the same recipes on the same windows and masks as `compare` with seed 0, whose
records of `tiny` are kept: the table is made from those.
"""

from typing import Any

import records
from quant_dllm.cli.demo import RECIPES
from quant_dllm.models.source import TINY, open_model
from quant_dllm.record import BASE
from quant_dllm.report.table import markdown

COMPARED = records.RESULTS / "compare-tiny.jsonl"
PAGE = records.ROOT / "README.md"
BEGIN, END = "<!-- table: made by benchmarks/demo.py -->", "<!-- end of table -->"
WEIGHTS = open_model(TINY).parameters()
COLUMNS = ("model", "code bits", "bits a weight", "bits of the file", "weights on disk", "NELBO",
           "perplexity", "KL to 16-bit", "top-1")  # fmt: skip


def table(found: list[dict[str, Any]]) -> str:
    """Write a row for the 16-bit model and each recipe of the demo, seed 0."""
    first = {r["recipe"]["name"]: r["evaluation"] for r in found if r["seed"] == 0}
    return markdown(COLUMNS, [row(name, first[name]) for name in (BASE, *RECIPES)])


def row(name: str, e: dict[str, Any]) -> list[str]:
    """Format an evaluation as the demo does."""
    bits, kl = e["bits"], e["kl"]
    return [
        name if name == BASE else f"`{name}`",
        f"{bits['code']:.2f}", f"{bits['stored']:.2f}", f"{bits['file']:.2f}",
        f"{bits['file'] * WEIGHTS / 8e6:.1f} MB",
        f"{e['nelbo']:.3f} ± {e['nelbo_stderr']:.3f}", f"{e['perplexity']:.2f}",
        "–" if kl is None else f"{kl:.3f} ± {e['kl_stderr']:.3f}",
        "–" if kl is None else f"{e['top1_agreement']:.1%}",
    ]  # fmt: skip


if __name__ == "__main__":
    records.write_between(PAGE, BEGIN, END, table(records.read(COMPARED)))
