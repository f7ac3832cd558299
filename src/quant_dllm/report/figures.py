"""The pictures of a report, drawn from records."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from quant_dllm.record import LayerRecord, TuningRecord
from quant_dllm.report.pareto import lower_edge
from quant_dllm.report.svg import (
    Frame,
    Number,
    Scale,
    around,
    drawing,
    element,
    legend,
    line,
    marker,
    text,
)
from quant_dllm.report.table import Row

WIDTH = 760.0
NUMBERED = re.compile(r"^(.*?)\.(\d+)\.(.*)$")


@dataclass(frozen=True)
class Place:
    """Where a layer is in the network: its block, and its name within a block."""

    block: int
    kind: str

    @classmethod
    def of(cls, name: str) -> "Place":
        """Take an upstream name apart: the first number is the block, later ones are experts."""
        found = NUMBERED.match(name)
        if not found:
            return cls(0, name)
        return cls(int(found[2]), re.sub(r"\.\d+\.", ".*.", found[3]))


def kinds_of(layers: Sequence[LayerRecord]) -> list[str]:
    """List the kinds of layers in the order in which they first come."""
    return list(dict.fromkeys(Place.of(layer.name).kind for layer in layers))


def layer_errors(layers: Sequence[LayerRecord]) -> str | None:
    """Draw the output error of each layer over the blocks; nothing where none was measured."""
    found = [(Place.of(layer.name), layer.error) for layer in layers if layer.error is not None]
    if not found:
        return None
    kinds, blocks = kinds_of(layers), max(place.block for place, _ in found) + 1
    right = WIDTH - 20 - max(9.0 * max(map(len, kinds)), 90)
    height = max(330.0, 70 + 19.0 * len(kinds))
    frame = Frame(
        Scale(-0.5, blocks - 0.5, 64, right),
        around([error for _, error in found], height - 54, 38, log=True),
        "model block, from input to output", "share of output energy that is wrong (log scale)",
    )  # fmt: skip
    parts = [frame.axes(*_whole(blocks))]
    for i, kind in enumerate(kinds):
        points = [(p.block, e) for p, e in found if p.kind == kind]
        at = [(frame.x(block), frame.y(error)) for block, error in points]
        if len(points) == len({block for block, _ in points}):
            parts.append(line(at, f"trace s{i % 8}"))
        parts += [
            marker(i, x, y, hint=f"block {block}, {kind}: {error:.2e}")
            for (block, error), (x, y) in zip(points, at, strict=True)
        ]
    parts.append(legend(right + 24, 48, kinds))
    return drawing(WIDTH, height, parts, "Output error of each layer over the model's blocks")


def _whole(count: int) -> tuple[list[Number], list[str]]:
    step = max(1, -(-count // 16))
    shown = range(0, count, step)
    return [float(i) for i in shown], [str(i) for i in shown]


def bits_map(layers: Sequence[LayerRecord], bits: Mapping[str, Sequence[int]]) -> str | None:
    """Draw the bits of every block of channels: a panel a kind of layer, a row a model block."""
    panels: dict[str, list[tuple[int, Sequence[int]]]] = {}
    for layer in layers:
        if layer.name in bits:
            place = Place.of(layer.name)
            panels.setdefault(place.kind, []).append((place.block, bits[layer.name]))
    if not panels:
        return None
    columns = 4 if len(panels) > 3 else len(panels)
    gap, left, top = 26.0, 50.0, 56.0
    wide = (WIDTH - left - gap * (columns - 1) - 8) / columns
    rows = max(len(panel) for panel in panels.values())
    cell = max(3.0, min(18.0, 300.0 / rows))
    tall = cell * rows + 54
    parts = [_bits_key(sorted({b for found in bits.values() for b in found}))]
    for i, (kind, panel) in enumerate(panels.items()):
        x, y = left + (i % columns) * (wide + gap), top + (i // columns) * tall
        parts.append(_panel(kind, panel, x, y, wide, cell, first=i % columns == 0))
    lines = -(-len(panels) // columns)
    return drawing(WIDTH, top + lines * tall, parts, "Bits of every block of input channels")


def _bits_key(levels: Sequence[int]) -> str:
    parts = []
    for i, level in enumerate(levels):
        x = 50 + 74.0 * i
        parts.append(
            element("rect", x=x, y=6, width=16, height=16, class_=f"cell b{min(level, 4)}")
        )
        parts.append(text(x + 23, 19, f"{level} bit{'s' if level > 1 else ''}"))
    return "".join(parts)


def _panel(
    kind: str,
    panel: Sequence[tuple[int, Sequence[int]]],
    x: Number,
    y: Number,
    wide: Number,
    cell: Number,
    first: bool,
) -> str:
    """Draw one kind of layer."""
    count = max(len(row) for _, row in panel)
    parts = [text(x, y - 8, kind, "label strong")]
    shown = max(1, round(16 / cell))
    for r, (block, row) in enumerate(sorted(panel, key=lambda item: item[0])):
        top = y + r * cell
        if first and r % shown == 0:
            parts.append(text(x - 7, top + cell / 2 + 4, str(block), "tick", text_anchor="end"))
        width = wide / count
        for j, level in enumerate(row):
            title = element("title", f"block {block}, channels’ block {j}: {level} bits")
            gap = min(1.0, 0.12 * min(width, cell))
            parts.append(
                element("rect", title, x=x + j * width, y=top, width=width - gap,
                        height=cell - gap, class_=f"cell b{min(level, 4)}")
            )  # fmt: skip
    bottom = y + len(panel) * cell
    parts.append(text(x, bottom + 17, "0", "tick"))
    parts.append(text(x + wide, bottom + 17, f"{count - 1}", "tick", text_anchor="end"))
    parts.append(text(x + wide / 2, bottom + 17, "channels’ block", "tick", text_anchor="middle"))
    if first:
        parts.append(text(x - 7, y - 8, "block", "tick", text_anchor="end"))
    return "".join(parts)


@dataclass(frozen=True)
class Share:
    """One part of the weight files: what it is, and its bytes."""

    name: str
    bytes: Number
    kind: str


def sizes(rows: Sequence[tuple[str, Sequence[Share]]]) -> str:
    """Draw what the files hold: a bar a model, on one scale in megabytes."""
    most = max(sum(share.bytes for share in shares) for _, shares in rows)
    unit, name = (1e9, "GB") if most > 2e9 else (1e6, "MB")
    scale = Scale(0, most / unit, 96, WIDTH - 76)
    bottom = 22 + 50.0 * len(rows)
    parts = []
    for value in scale.ticks():
        x = scale(value)
        parts.append(element("line", x1=x, x2=x, y1=8, y2=bottom, class_="grid"))
        parts.append(text(x, bottom + 18, f"{value:g}", "tick", text_anchor="middle"))
    for i, (model, shares) in enumerate(rows):
        y, begin = 16 + 50.0 * i, 0.0
        parts.append(text(86, y + 21, model, "label strong", text_anchor="end"))
        for share in shares:
            x, end = scale(begin / unit), scale((begin + share.bytes) / unit)
            title = element("title", f"{share.name}: {share.bytes / unit:.3g} {name}")
            parts.append(element("rect", title, x=x, y=y, width=max(end - x - 1.5, 0.5), height=32,
                                 rx=2, class_=f"part {share.kind}"))  # fmt: skip
            if end - x > 58:
                parts.append(text((x + end) / 2, y + 21, f"{share.bytes / unit:.3g} {name}",
                                  f"inside {share.kind}", text_anchor="middle"))  # fmt: skip
            begin += share.bytes
        parts.append(text(scale(begin / unit) + 8, y + 21, f"{begin / unit:.3g} {name}"))
    parts.append(text((96 + WIDTH - 76) / 2, bottom + 38, f"weight files, {name}",
                      text_anchor="middle"))  # fmt: skip
    parts += _parts_key(rows[-1][1], bottom + 54)
    return drawing(WIDTH, bottom + 76, parts, "What the weight files hold")


def _parts_key(shares: Sequence[Share], y: Number) -> list[str]:
    parts, x = [], 96.0
    for share in shares:
        parts.append(
            element("rect", x=x, y=y, width=14, height=14, rx=2, class_=f"part {share.kind}")
        )
        parts.append(text(x + 20, y + 12, share.name))
        x += 48 + 7.0 * len(share.name)
    return parts


def tuning_curve(tuning: TuningRecord, steps: int) -> str:
    """Draw the divergence on validation text over the updates; the lowest point is ringed."""
    height, curve = 280.0, tuning.curve
    updates = [min(i * tuning.every, steps) for i in range(len(curve))]
    frame = Frame(
        Scale(0, steps, 64, WIDTH - 60),
        Scale(0, max(curve) * 1.15 or 1.0, height - 54, 38),
        "updates of the scales", "KL to 16 bits on validation text, nats a masked token",
    )  # fmt: skip
    at = [(frame.x(step), frame.y(kl)) for step, kl in zip(updates, curve, strict=True)]
    parts = [frame.axes(), line(at, "trace s0")]
    best = min(range(len(curve)), key=curve.__getitem__)
    for i, (x, y) in enumerate(at):
        parts.append(marker(0, x, y, hint=f"behind update {updates[i]}: {curve[i]:.4f}"))
        if i in (0, best):
            parts.append(text(x, y - 13, f"{curve[i]:.3f}", "label strong", text_anchor="middle"))
    parts.append(element("circle", cx=at[best][0], cy=at[best][1], r=8.5, class_="ring"))
    return drawing(WIDTH, height, parts, "Divergence on validation text while scales are tuned")


def block_errors(curves: Sequence[Sequence[Number]]) -> str:
    """Draw the relative error behind every block, before its scales were tuned and after."""
    height, right = 280.0, WIDTH - 110
    before, after = [curve[0] for curve in curves], [min(curve) for curve in curves]
    frame = Frame(
        Scale(-0.5, len(curves) - 0.5, 64, right),
        Scale(0, max(before) * 1.15 or 1.0, height - 54, 38),
        "model block, from input to output", "error behind the block, of a token’s energy",
    )  # fmt: skip
    parts = [frame.axes(*_whole(len(curves)))]
    for series, values in enumerate((after, before)):
        at = [(frame.x(i), frame.y(value)) for i, value in enumerate(values)]
        parts.append(line(at, f"trace s{series}"))
        for i, (x, y) in enumerate(at):
            parts.append(marker(series, x, y, hint=f"block {i}: {values[i]:.3g}"))
    parts.append(legend(right + 24, 48, ("after", "before")))
    return drawing(WIDTH, height, parts, "Error behind every block, before and after its tuning")


def by_mask_ratio(kl: Mapping[str, Number], top1: Mapping[str, Number]) -> str:
    """Draw KL and agreement over the share of tokens that is masked, side by side."""
    height = 300.0
    ratios = [float(ratio) for ratio in kl]
    panels = (
        (64.0, list(kl.values()), "KL to 16 bits, nats a masked token", "0", "{:.3f}"),
        (WIDTH / 2 + 64, [100 * v for v in top1.values()], "same first choice, %", "1", "{:.1f}"),
    )
    parts = []
    for left, values, label, series, form in panels:
        y = Scale(0, max(max(values) * 1.15, 1e-6), height - 54, 38)
        if series == "1":
            y = Scale(0, 100, height - 54, 38)
        frame = Frame(Scale(0.15, 1.08, left, left + WIDTH / 2 - 84), y, "share masked", label)
        parts.append(frame.axes(ratios, [f"{ratio:.0%}" for ratio in ratios]))
        at = [(frame.x(r), frame.y(v)) for r, v in zip(ratios, values, strict=True)]
        parts.append(line(at, f"trace s{series}"))
        for (x, py), value in zip(at, values, strict=True):
            shown = form.format(value)
            parts.append(marker(int(series), x, py, hint=shown))
            above = py - 10 if py > 60 else py + 20
            parts.append(text(x, above, shown, "label", text_anchor="middle"))
    return drawing(WIDTH, height, parts, "Divergence and agreement over the share masked")


def pareto(rows: Sequence[Row], ours: str) -> str:
    """Draw stored bits against KL, a mark a recipe, the one of this report filled."""
    height, right = 400.0, WIDTH - 150
    kls = [row.kl.mean for row in rows]
    frame = Frame(
        around([row.stored_bits for row in rows], 64, right),
        around(kls, height - 54, 38, log=True),
        "stored bits a quantized weight, with every scale",
        "KL to 16 bits, nats a masked token (log scale)",
    )  # fmt: skip
    edge = lower_edge([(row.stored_bits, row.kl.mean) for row in rows])
    parts = [frame.axes()]
    stairs: list[tuple[Number, Number]] = []
    for bits, kl in edge:
        if stairs:
            stairs.append((frame.x(bits), stairs[-1][1]))
        stairs.append((frame.x(bits), frame.y(kl)))
    parts.append(line(stairs, "edge"))
    taken: list[tuple[Number, Number]] = []
    for row in sorted(rows, key=lambda row: -row.kl.mean):
        x, y = frame.x(row.stored_bits), frame.y(row.kl.mean)
        spread = row.kl.deviation
        if spread == spread:
            low, high = max(row.kl.mean - spread, frame.y.low), row.kl.mean + spread
            parts.append(element("line", x1=x, x2=x, y1=frame.y(low), y2=frame.y(high),
                                 class_="axis"))  # fmt: skip
        mine = row.name == ours
        hint = f"{row.name}: {row.stored_bits:.3f} bits, KL {row.kl.text(4)}"
        parts.append(marker(3 if mine else 0, x, y, 6.5 if mine else 5, hint))
        label = y + 4
        while any(abs(x - a) < 130 and abs(label - b) < 14 for a, b in taken):
            label += 14
        taken.append((x, label))
        parts.append(text(x + 12, label, row.name, "label strong" if mine else "label"))
    return drawing(WIDTH, height, parts, "Divergence against stored bits, a mark a recipe")
