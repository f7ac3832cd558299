"""How results and progress look: tables on standard output, progress on standard error."""

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any, TypeVar

T = TypeVar("T")
HIDDEN = "·"  # a token that is not written yet
LINE_EVERY = 5.0  # seconds between two lines of progress where there is no terminal


def print_json(value: dict[str, Any]) -> None:
    """Print one JSON object."""
    print(json.dumps(value, ensure_ascii=False))


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table; numbers stand to the right. Piped, it is as wide as it needs to be."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 250)
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left", no_wrap=not i)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def print_facts(facts: dict[str, str]) -> None:
    """Print names and values, one a line."""
    width = max(len(name) for name in facts)
    for name, value in facts.items():
        print(f"{name:<{width}}  {value}")


def size(count: int | float | None) -> str:
    """Format bytes."""
    if count is None:
        return "not known"
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"


def track(items: Iterable[T], what: str, total: int) -> Iterator[T]:
    """Show how far work is: a bar with the time left, or lines where there is no terminal."""
    yield from (_bar if sys.stderr.isatty() else _lines)(items, what, total)


@contextmanager
def canvas_shower(
    tokenizer: Any, mask_token_id: int, wanted: bool
) -> Iterator[Callable[[Any], None] | None]:
    """Show a canvas as it is denoised: in place, or line by line where there is no terminal."""
    if not wanted or tokenizer is None:
        yield None
        return

    def text(canvas: Any) -> str:
        runs = groupby(canvas[0].tolist(), key=lambda token: token == mask_token_id)
        return "".join(HIDDEN * len(list(run)) if hidden else tokenizer.decode(list(run))
                       for hidden, run in runs)  # fmt: skip

    if not sys.stderr.isatty():
        yield lambda canvas: print(json.dumps(text(canvas), ensure_ascii=False), file=sys.stderr)
        return
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    with Live(console=Console(stderr=True), transient=True) as live:
        yield lambda canvas: live.update(Text(text(canvas)))


def _bar(items: Iterable[T], what: str, total: int) -> Iterator[T]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield from progress.track(items, total=total, description=what)


def _lines(items: Iterable[T], what: str, total: int) -> Iterator[T]:
    began = said = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - said >= LINE_EVERY:
            said, left = now, (now - began) / done * (total - done)
            print(
                f"{what}: {done} of {total}, {now - began:.0f} s, {left:.0f} s left",
                file=sys.stderr, flush=True,
            )  # fmt: skip


def before_and_after(curves: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Average where curves begin, and their lowest points: what tuning blocks brought."""
    first, lowest = [curve[0] for curve in curves], [min(curve) for curve in curves]
    return sum(first) / len(curves), sum(lowest) / len(curves)
