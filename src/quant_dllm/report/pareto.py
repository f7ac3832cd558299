"""The picture of a comparison: stored bits against the distance from the 16-bit model."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from quant_dllm.errors import RequestError
from quant_dllm.record import BASE
from quant_dllm.report.table import Row

OURS = "#ea580c"
LETTER, LINE, MARK = 4.6, 10, 6  # a letter's width, a line's height, half a mark, in points


def draw(rows: Sequence[Row], path: Path, title: str) -> None:
    """Draw KL against stored bits, a point a recipe with its spread, and the lower edge of all.

    Recipes of one method at several numbers of bits have one colour.

    Raises:
        RequestError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise RequestError(
            "Pictures need matplotlib, which is not installed. pip install 'quant-dllm[report]'"
        ) from None
    shown = sorted((row for row in rows if row.name != BASE), key=lambda row: -row.kl.mean)
    methods = list(dict.fromkeys(method(row.name) for row in shown))
    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots()
    for row in shown:
        kl, ours = row.kl, row.name.startswith("quant-dllm")
        axes.errorbar(
            row.stored_bits, kl.mean, yerr=0 if kl.deviation != kl.deviation else kl.deviation,
            fmt="o" if ours else "s", capsize=3, markersize=7,
            color=OURS if ours else f"C{methods.index(method(row.name)) % 10}",
        )  # fmt: skip
    edge = lower_edge([(row.stored_bits, row.kl.mean) for row in shown])
    axes.step(*zip(*edge, strict=True), where="post", color="#9ca3af", linewidth=1, zorder=0)
    axes.set_yscale("log")
    left, right = axes.get_xlim()
    axes.set_xlim(left, right + 0.25 * (right - left))  # names stand to the right of their points
    axes.set_xlabel("stored bits a quantized weight (codes, scales, zero points)")
    axes.set_ylabel("KL to the 16-bit model at masked positions, nats")
    axes.set_title(title, loc="left")
    axes.grid(alpha=0.25, which="both")
    _label(figure, axes, shown)
    figure.savefig(path, dpi=130)


def method(recipe: str) -> str:
    """Return a recipe's name without its bits."""
    return re.sub(r"-[\d.]+bit", "", recipe)


def _label(figure: Any, axes: Any, rows: Sequence[Row]) -> None:
    """Name the points, each name at the nearest height where it hides no mark and no other name."""
    figure.draw_without_rendering()  # the axes have their places now
    points = [(row.stored_bits, row.kl.mean) for row in rows]
    at = [tuple(axes.transData.transform(point) * 72 / figure.dpi) for point in points]
    taken = [(x - MARK, x + MARK, y) for x, y in at]
    for row, point, (x, y) in zip(rows, points, at, strict=True):
        left, right = x + MARK, x + MARK + LETTER * len(row.name)
        near = [taken_y for a, b, taken_y in taken if a < right and left < b]
        label = min(
            (y + move for move in range(-90, 91)),
            key=lambda line: (any(abs(line - other) < LINE for other in near), abs(line - y)),
        )
        taken.append((left, right, label))
        axes.annotate(
            row.name, point, xytext=(MARK + 2, label - y), textcoords="offset points", fontsize=8,
            va="center",
        )  # fmt: skip


def lower_edge(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Keep the points that no other one beats in both coordinates, from few bits to many."""
    edge: list[tuple[float, float]] = []
    for bits, kl in sorted(points):
        if not edge or kl < edge[-1][1]:
            edge.append((bits, kl))
    return edge
