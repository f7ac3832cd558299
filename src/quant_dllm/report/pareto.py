"""The picture of a comparison: stored bits against the distance from the 16-bit model."""

from collections.abc import Sequence
from pathlib import Path

from quant_dllm.errors import RequestError
from quant_dllm.record import BASE
from quant_dllm.report.table import Row


def draw(rows: Sequence[Row], path: Path, title: str) -> None:
    """Draw KL against stored bits, a point a recipe with its spread, and the lower edge of all.

    Raises:
        RequestError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise RequestError(
            "Pictures need matplotlib, which is not installed. pip install 'quant-dllm[report]'"
        ) from None
    shown = [row for row in rows if row.name != BASE]
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for i, row in enumerate(shown):
        kl = row.kl
        ours = row.name.startswith("quant-dllm")
        axes.errorbar(
            row.stored_bits, kl.mean, yerr=0 if kl.deviation != kl.deviation else kl.deviation,
            fmt="o" if ours else "s", color="#ea580c" if ours else f"C{i % 10}", markersize=7,
            capsize=3,
        )  # fmt: skip
        axes.annotate(
            row.name, (row.stored_bits, kl.mean), xytext=(7, 4), textcoords="offset points",
            fontsize=8,
        )  # fmt: skip
    edge = lower_edge([(row.stored_bits, row.kl.mean) for row in shown])
    axes.step(*zip(*edge, strict=True), where="post", color="#9ca3af", linewidth=1, zorder=0)
    axes.set_yscale("log")
    axes.margins(x=0.15)
    axes.set_xlabel("stored bits a quantized weight (codes, scales, zero points)")
    axes.set_ylabel("KL to the 16-bit model at masked positions, nats")
    axes.set_title(title, loc="left")
    axes.grid(alpha=0.25, which="both")
    figure.savefig(path, dpi=130)


def lower_edge(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Keep the points that no other one beats in both coordinates, from few bits to many."""
    edge: list[tuple[float, float]] = []
    for bits, kl in sorted(points):
        if not edge or kl < edge[-1][1]:
            edge.append((bits, kl))
    return edge
