"""A picture in the terminal that is drawn again and again while work goes on."""

import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")


def live(
    items: Iterable[T], take: Callable[[T], None], picture: Callable[[int], Any]
) -> Iterator[T]:
    """Pass items on, and draw.

    Args:
        items: As they come.
        take: Notes each of them.
        picture: Draws what was noted, for a terminal of so many columns.
    """
    from rich.console import Console
    from rich.live import Live

    console = Console(stderr=True)
    with Live(console=console, get_renderable=lambda: picture(console.width),
              refresh_per_second=4, transient=True), _logs_above():  # fmt: skip
        for item in items:
            take(item)
            yield item


@contextmanager
def _logs_above() -> Iterator[None]:
    """Let what is logged meanwhile go above the view, which has taken the place of stderr."""
    handlers = [h for h in logging.getLogger("quant_dllm").handlers
                if isinstance(h, logging.StreamHandler)]  # fmt: skip
    before = [handler.setStream(sys.stderr) for handler in handlers]
    try:
        yield
    finally:
        for handler, stream in zip(handlers, before, strict=True):
            if stream is not None:
                handler.setStream(stream)


def clock(seconds: float) -> str:
    """Format a time as minutes and seconds, and hours where there are any."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def panel(what: str, *parts: Any) -> Any:
    """Draw a frame around lines and tables."""
    from rich.console import Group
    from rich.panel import Panel

    return Panel(Group(*parts), title=what, title_align="left", border_style="dim")


def bar(done: int, total: int) -> Any:
    """Draw how far work is."""
    from rich.progress_bar import ProgressBar

    blue = "color(39)"
    return ProgressBar(total=total or 1, completed=done, complete_style=blue, finished_style=blue)


def gauge(share: float, cells: int = 10) -> Any:
    """Draw a share as a row of cells, to an eighth of one."""
    from rich.text import Text

    eighths = round(8 * cells * min(max(share, 0.0), 1.0))
    drawn = "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()
    return Text(drawn.ljust(cells), style="color(214)")
