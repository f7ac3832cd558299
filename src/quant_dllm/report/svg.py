"""Pictures as text: SVG elements, axes and marks; colours are the page's classes.

Every series has a colour and a shape of its own, so that a reader who sees no colour, or has the
page in print, can tell them apart. The colours are Okabe and Ito's.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

Number = int | float

SERIES = 8
"""Series that have a colour of their own, ``s0`` … in the style sheet."""


def element(name: str, content: str = "", **attributes: Any) -> str:
    """Write one element; ``class_`` is class, ``font_size`` font-size; numbers are rounded."""
    parts = []
    for key, value in attributes.items():
        if value is None:
            continue
        shown = f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
        parts.append(f' {key.rstrip("_").replace("_", "-")}="{escape(shown)}"')
    return f"<{name}{''.join(parts)}>{content}</{name}>"


def text(x: Number, y: Number, words: str, class_: str = "label", **attributes: Any) -> str:
    """Write text at a point."""
    return element("text", escape(words), x=x, y=y, class_=class_, **attributes)


def drawing(width: Number, height: Number, parts: Iterable[str], label: str) -> str:
    """Wrap a picture; ``label`` is read out in its place."""
    return element(
        "svg", "".join(parts), xmlns="http://www.w3.org/2000/svg", role="img", aria_label=label,
        viewBox=f"0 0 {width:g} {height:g}", width=width, height=height,
    )  # fmt: skip


@dataclass(frozen=True)
class Scale:
    """From values to a length of the picture.

    Attributes:
        low, high: Values at the two ends.
        start, stop: Where the ends lie, in the picture's units.
        log: Whether equal ratios are equal lengths.
    """

    low: Number
    high: Number
    start: Number
    stop: Number
    log: bool = False

    def __call__(self, value: Number) -> Number:
        """Return where a value lies."""
        low, high, value = (self._warp(v) for v in (self.low, self.high, value))
        return self.start + (value - low) / ((high - low) or 1.0) * (self.stop - self.start)

    def _warp(self, value: Number) -> Number:
        return math.log10(max(value, 1e-300)) if self.log else value

    def ticks(self, wanted: int = 5) -> list[Number]:
        """Choose round values between the ends."""
        if self.log:
            return self._log_ticks()
        raw = (self.high - self.low) / wanted
        power = 10.0 ** math.floor(math.log10(raw)) if raw > 0 else 1.0
        step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= raw * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [i * step for i in range(first, last + 1)]

    def _log_ticks(self) -> list[Number]:
        low, high = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        for steps in ((1,), (1, 3), (1, 2, 5), tuple(range(1, 10))):
            ticks = [m * 10.0**e for e in range(low, high + 1) for m in steps]
            inside = [t for t in ticks if self.low * 0.999 <= t <= self.high * 1.001]
            if len(inside) >= 3:
                return inside
        return inside


def around(values: Sequence[Number], start: Number, stop: Number, log: bool = False) -> Scale:
    """Make a scale with some room beyond the values."""
    low, high = min(values), max(values)
    if log:
        low, high = max(low, 1e-12), max(high, 1e-12)
        room = max((high / low) ** 0.08, 1.12)
        return Scale(low / room, high * room, start, stop, log=True)
    room = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
    return Scale(low - room, high + room, start, stop)


def number(value: Number) -> str:
    """Format a tick."""
    if value and not 1e-3 <= abs(value) < 1e5:
        mantissa, exponent = f"{value:.0e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    return f"{value:.6f}".rstrip("0").rstrip(".")


@dataclass(frozen=True)
class Frame:
    """The plane of a picture with two axes.

    Attributes:
        x, y: Scales; y runs upwards, so its start lies below its stop.
        x_label, y_label: What the axes say, units included.
    """

    x: Scale
    y: Scale
    x_label: str
    y_label: str

    def axes(
        self, x_ticks: Sequence[Number] | None = None, x_names: Sequence[str] | None = None
    ) -> str:
        """Draw grid, ticks and labels."""
        left, right, bottom, top = self.x.start, self.x.stop, self.y.start, self.y.stop
        parts = []
        for value in self.y.ticks():
            y = self.y(value)
            parts.append(element("line", x1=left, x2=right, y1=y, y2=y, class_="grid"))
            parts.append(text(left - 8, y + 4, number(value), "tick", text_anchor="end"))
        shown = self.x.ticks() if x_ticks is None else list(x_ticks)
        for value, name in zip(shown, x_names or map(number, shown), strict=True):
            x = self.x(value)
            parts.append(element("line", x1=x, x2=x, y1=bottom, y2=bottom + 5, class_="axis"))
            parts.append(text(x, bottom + 19, name, "tick", text_anchor="middle"))
        parts.append(element("line", x1=left, x2=right, y1=bottom, y2=bottom, class_="axis"))
        parts.append(text((left + right) / 2, bottom + 40, self.x_label, text_anchor="middle"))
        parts.append(text(left - 46, top - 14, self.y_label))
        return "".join(parts)


def marker(kind: int, x: Number, y: Number, size: Number = 4.5, hint: str = "") -> str:
    """Draw the mark of a series; ``hint`` is shown where the pointer rests."""
    title = element("title", escape(hint)) if hint else ""
    shape = kind % SERIES
    points = {
        1: [(-1, -1), (1, -1), (1, 1), (-1, 1)],
        2: [(0, -1.25), (1.2, 0.95), (-1.2, 0.95)],
        3: [(0, -1.4), (1.4, 0), (0, 1.4), (-1.4, 0)],
        4: [(0, 1.25), (1.2, -0.95), (-1.2, -0.95)],
        6: [(-1.4, -0.45), (1.4, -0.45), (1.4, 0.45), (-1.4, 0.45)],
        7: [(-0.45, -1.4), (0.45, -1.4), (0.45, 1.4), (-0.45, 1.4)],
    }
    if shape in points:
        at = " ".join(f"{x + a * size:.1f},{y + b * size:.1f}" for a, b in points[shape])
        return element("polygon", title, points=at, class_=f"mark s{shape}")
    hollow = " hollow" if shape == 5 else ""
    return element("circle", title, cx=x, cy=y, r=size, class_=f"mark s{shape}{hollow}")


def line(points: Iterable[tuple[Number, Number]], class_: str) -> str:
    """Join points."""
    at = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return element("polyline", points=at, class_=class_)


def legend(x: Number, y: Number, names: Sequence[str], step: Number = 19) -> str:
    """List series, one below the other."""
    return "".join(
        marker(i, x, y + i * step) + text(x + 12, y + i * step + 4, name)
        for i, name in enumerate(names)
    )
