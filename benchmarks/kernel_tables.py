"""Tables of `docs/kernels.md`, made of records between two marks."""

from pathlib import Path
from typing import Any

from quant_dllm.report.table import markdown
from records import ROOT, write_between

PAGE = ROOT / "docs" / "kernels.md"
Must = dict[str, dict[int, float]]
BEGIN, END = "<!-- tables: made by benchmarks/kernels.py --tables -->", "<!-- end of tables -->"
MODEL = "<!-- model: made by benchmarks/kernels.py --tables -->", "<!-- end of model -->"


def write(runs: list[list[dict[str, Any]]], must: Must, page: Path = PAGE) -> None:
    """Replace what stands between the marks of the page by the tables of all runs."""
    write_between(page, BEGIN, END, "\n".join(text(found, must) for found in runs))


def write_model(found: list[dict[str, Any]], page: Path = PAGE) -> None:
    """Replace what is said of whole models, each as `quant-dllm bench --json` printed it."""
    write_between(page, *MODEL, "\n\n".join(map(model, found)))


def model(run: dict[str, Any]) -> str:
    """Write seconds a call of a dense and a packed model, with the head and without."""
    by = {(t["network"], t["length"]): t for t in run["timings"]}
    lines = []
    for length in sorted({length for _, length in by}):
        cells = []
        for less in (0, 1):
            dense, packed = (
                by[name, length]["seconds"] - less * by[name, length]["head"]
                for name in ("dense", "packed")
            )
            cells += [f"{dense:.3g}", f"{packed:.3g}", f"{dense / packed:.1f}×"]
        lines.append([str(length), *cells])
    head = ["canvas", run["dtype"], "two bits", "", f"blocks alone, {run['dtype']}", "two bits", ""]
    dense, packed = (run["weight_bytes"][name] for name in ("dense", "packed"))
    return (
        f"{run['processor']}, {run['threads']} threads, commit {run['commit']}, {run['date']}; the "
        f"blocks' layers take {packed / 1e6:.0f} MB in place of {dense / 1e6:.0f}, "
        f"{packed / dense:.3f} of them.\n\n" + markdown(head, lines)
    )


def text(found: list[dict[str, Any]], must: Must) -> str:
    """Write all tables."""
    rows = [r for r in found if r["what"] == "binary_linear"]
    unit = next(r["backend"] for r in rows if r["order"] == 2)
    first = rows[0]
    limit = first.get("torch_isa")
    limited = f" held to the instructions `{limit}`" if limit else ""
    head = (
        f"### `{unit}` on {first['processor']}\n\ntorch {first['torch']}{limited}, "
        f"commit {first['commit']}, {first['date']}.\n"
    )
    parts = [head, "Times faster, order 2:\n", _ratios(rows, unit, must.get(unit, {}))]
    parts += ["Milliseconds a call: median ± interquartile range.\n", _times(rows)]
    return "\n".join([*parts, "Rates:\n", _rates(rows, unit, found)])


def _median(rows: list[dict], **wanted: Any) -> float | None:
    for r in rows:
        if all(r[k] == v for k, v in wanted.items()):
            return r["median_us"]
    return None


def _cases(rows: list[dict]) -> list[tuple[int, int, int]]:
    return list(dict.fromkeys((r["in"], r["out"], r["threads"]) for r in rows))


def _tokens(rows: list[dict]) -> list[int]:
    return sorted({r["tokens"] for r in rows})


def _ratios(rows: list[dict], unit: str, must: dict[int, float]) -> str:
    tokens, lines = _tokens(rows), []
    lines.append(["**must**, over torch bfloat16", "", *(f"{must.get(m, '-')}" for m in tokens)])
    for inputs, out, threads in _cases(rows):
        for reference in dict.fromkeys(r["backend"] for r in rows if not r["order"]):
            cells = []
            for m in tokens:
                case = {"in": inputs, "out": out, "threads": threads, "tokens": m}
                ours = _median(rows, backend=unit, order=2, **case)
                theirs = _median(rows, backend=reference, **case)
                ratio = theirs / ours if ours and theirs else None
                missed = ratio and reference.endswith("bfloat16") and ratio < must.get(m, 0)
                cells.append(f"{ratio:.2f}{' (missed)' if missed else ''}" if ratio else "-")
            if any(cell != "-" for cell in cells):
                lines.append([f"{inputs}→{out}, over {reference}", str(threads), *cells])
    return markdown(["", "threads", *(f"M = {m}" for m in tokens)], lines)


def _times(rows: list[dict]) -> str:
    tokens, lines = _tokens(rows), []
    keys = dict.fromkeys((r["in"], r["out"], r["threads"], r["backend"], r["order"]) for r in rows)
    for inputs, out, threads, backend, order in keys:
        case = {"in": inputs, "out": out, "threads": threads, "backend": backend, "order": order}
        cells = []
        for m in tokens:
            record = next(
                (r for r in rows if all(r[k] == v for k, v in (case | {"tokens": m}).items())), None
            )
            cells.append(_milliseconds(record) if record else "-")
        name = backend + (f", order {order}" if order else "")
        lines.append([f"{inputs}→{out}", str(threads), name, *cells])
    head = ["", "threads", "kernel", *(f"M = {m}" for m in tokens)]
    return markdown(head, lines)


def _milliseconds(record: dict) -> str:
    return f"{record['median_us'] / 1e3:.3g} ± {record['iqr_us'] / 1e3:.2g}"


def _rates(rows: list[dict], unit: str, found: list[dict[str, Any]]) -> str:
    """Reached look-ups beside what the instructions allow, and packing."""
    limit = next((r["lookups_per_s"] for r in found if r["what"] == "ceiling"), None)
    lines = []
    for m in _tokens(rows):
        case = {"in": 4096, "out": 4096, "threads": 1, "backend": unit, "order": 2, "tokens": m}
        median = _median(rows, **case)
        if median is None:
            continue
        lookups = 4096 * 4096 / 4 * 2 * m / (median * 1e-6)
        dense = 2 * 4096 * 4096 * m / (median * 1e-6)
        line = [f"M = {m}", f"{dense / 1e9:.0f}"]
        lines.append([*line, f"{lookups / 1e9:.0f}", f"{lookups / limit:.0%}"] if limit else line)
    head = ["4096→4096, order 2, 1 thread", "dense GFLOP/s"]
    out = markdown([*head, "10⁹ look-ups/s", "of the ceiling"] if limit else head, lines)
    if limit:
        out += f"\nCeiling of the instructions: {limit / 1e9:.0f}·10⁹ look-ups a second.\n"
    for record in (r for r in found if r["what"] == "read"):
        out += "\n" + _traffic(rows, unit, record)
    for record in (r for r in found if r["what"] == "pack"):
        rate = record["median_bytes_per_s"] / 1e9
        out += f"\nPacking at load: {rate:.2f} GB/s, one thread.\n"
    return out


def _traffic(rows: list[dict], unit: str, read: dict[str, Any]) -> str:
    """Say how much of what memory gives is reached at one token."""
    told = []
    for name, order, bits in ((unit, 2, 2 + 2 * 2 * 16 / 128), ("torch bfloat16", 0, 16.0)):
        case = {"in": 4096, "out": 12288, "threads": read["threads"], "tokens": 1}
        median = _median(rows, **case, backend=name, order=order)
        if median is not None:
            told.append(f"{name} reads {4096 * 12288 * bits / 8e3 / median:.1f}")
    rate = read["median_bytes_per_s"] / 1e9
    return (
        f"Memory, {read['threads']} threads: a sum of float32 reads {rate:.1f} GB/s; at M = 1, "
        f"4096→12288, {', '.join(told)}.\n"
    )
