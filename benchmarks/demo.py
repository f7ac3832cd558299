"""Keep what ``make demo`` printed, and write the README's table of it.

    make demo | tee demo.txt
    python benchmarks/demo.py demo.txt    # without a file: the table alone, from the last record

The table is that of the terminal, a cell for a cell.
"""

import argparse
import re
from pathlib import Path
from typing import Any

import records
from quant_dllm.record import BASE
from quant_dllm.report.table import markdown

RESULTS = records.RESULTS / "demo.jsonl"
PAGE = records.ROOT / "README.md"
BEGIN, END = "<!-- table: made by benchmarks/demo.py -->", "<!-- end of table -->"
COLUMNS = ("model", "code bits", "bits a weight", "bits of the file", "weights on disk", "NELBO",
           "perplexity", "KL to 16-bit", "top-1", "seconds")  # fmt: skip


def parsed(printed: str) -> list[list[str]]:
    """Find the rows of the printed table: those with as many cells as it has columns.

    Raises:
        SystemExit: There are none.
    """
    cells = [re.split(r"\s{2,}", line.strip()) for line in printed.splitlines()]
    rows = [row for row in cells if len(row) == len(COLUMNS) and row[0] != COLUMNS[0]]
    if not rows:
        raise SystemExit("No table of `quant-dllm demo` is in that file.")
    return rows


def table(record: dict[str, Any]) -> str:
    """Write the newest record as a table."""
    rows = [[name if name == BASE else f"`{name}`", *cells] for name, *cells in record["rows"]]
    told = f"{record['processor']}, torch {record['torch']}; ± is the standard error."
    return f"{markdown(COLUMNS, rows)}\n{told}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("printed", nargs="?", type=Path, metavar="FILE")
    asked = parser.parse_args()
    if asked.printed:
        found = {"what": "demo", "rows": parsed(asked.printed.read_text())} | records.where()
        with RESULTS.open("a") as file:
            records.append(file, found)
    records.put(table(records.read(RESULTS)[-1]), PAGE, BEGIN, END)


if __name__ == "__main__":
    main()
