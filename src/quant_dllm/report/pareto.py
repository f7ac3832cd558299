"""The picture of a comparison: stored bits against the distance from the 16-bit model."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from quant_dllm.errors import RequestError
from quant_dllm.record import BASE
from quant_dllm.report.table import Row

OURS = "#ea580c"
WIDTH, HEIGHT = 120, 11  # of a label, points


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
    axes.margins(x=0.15)
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
    """Name the points from the highest to the lowest, none over another's name."""
    figure.draw_without_rendering()  # the axes have their places now
    taken: list[tuple[float, float]] = []
    for row in rows:
        point = (row.stored_bits, row.kl.mean)
        x, y = (float(pixel) * 72 / figure.dpi for pixel in axes.transData.transform(point))
        label = y - 3
        while any(abs(x - a) < WIDTH and abs(label - b) < HEIGHT for a, b in taken):
            label -= HEIGHT
        taken.append((x, label))
        axes.annotate(
            row.name, point, xytext=(7, label - y), textcoords="offset points", fontsize=8
        )


def lower_edge(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Keep the points that no other one beats in both coordinates, from few bits to many."""
    edge: list[tuple[float, float]] = []
    for bits, kl in sorted(points):
        if not edge or kl < edge[-1][1]:
            edge.append((bits, kl))
    return edge
