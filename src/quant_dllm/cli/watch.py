"""What is seen of a quantization while it runs: a live view, or a line a layer where piped."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from quant_dllm.cli.show import size, track
from quant_dllm.memory import PeakMemory
from quant_dllm.record import LayerRecord

T = TypeVar("T")
SHOWN = 7  # layers that the live view lists
WIDE = 64  # columns of a terminal below which the view says less


@dataclass
class QuantizeView:
    """A `Track` that shows layers; anything else is shown as `show.track` does.

    Attributes:
        blocks: Blocks of the model.
        verbose: Whether every layer is logged anyway, so that lines would be said twice.
    """

    blocks: int
    verbose: bool = False
    began: float = field(default_factory=time.monotonic)
    done: list[LayerRecord] = field(default_factory=list)
    total: int = 0

    def __call__(self, items: Iterable[T], what: str, total: int) -> Iterator[T]:
        """Pass the items on."""
        if not what.startswith("quantizing"):
            yield from track(items, what, total)
            return
        self.began, self.total, self.done = time.monotonic(), total, []
        yield from (self._live if sys.stderr.isatty() else self._lines)(items, what)

    @property
    def elapsed(self) -> float:
        """Tell the time so far, seconds."""
        return time.monotonic() - self.began

    @property
    def left(self) -> float | None:
        """Guess the time left, seconds: what is left takes as long a layer as what is done."""
        if not self.done:
            return None
        return self.elapsed / len(self.done) * (self.total - len(self.done))

    @property
    def block(self) -> int:
        """Count the blocks that are done or under way."""
        a_block = max(self.total / max(self.blocks, 1), 1)
        return min(int(len(self.done) / a_block) + 1, self.blocks)

    @property
    def tokens_per_second(self) -> float | None:
        """Tell how fast calibration text flows: tokens that went through a block in a second."""
        tokens = max((layer.tokens for layer in self.done), default=0)
        passed = tokens * len(self.done) * self.blocks / max(self.total, 1)
        return passed / max(self.elapsed, 1e-9) if tokens else None

    def _lines(self, items: Iterable[T], what: str) -> Iterator[T]:
        """Say one ``key=value`` line a layer."""
        for item in items:
            yield item
            self._take(item)
            if self.verbose or not isinstance(item, LayerRecord):
                continue
            speed = self.tokens_per_second
            print(
                f"done={len(self.done)}/{self.total} block={self.block}/{self.blocks} "
                f"{item.line()} tokens_per_second={'-' if speed is None else f'{speed:.0f}'} "
                f"peak_mb={(PeakMemory.read() or 0) / 1e6:.0f} elapsed_s={self.elapsed:.0f} "
                f"left_s={self.left or 0:.0f}",
                file=sys.stderr, flush=True,
            )  # fmt: skip

    def _live(self, items: Iterable[T], what: str) -> Iterator[T]:
        from rich.console import Console
        from rich.live import Live

        console = Console(stderr=True)
        with Live(console=console, get_renderable=lambda: self.picture(what, console.width),
                  refresh_per_second=4, transient=True), _logs_above():  # fmt: skip
            for item in items:
                yield item
                self._take(item)

    def _take(self, item: Any) -> None:
        if isinstance(item, LayerRecord):
            self.done.append(item)

    def picture(self, what: str, width: int) -> Any:
        """Draw the view, for a terminal of so many columns."""
        from rich.console import Group
        from rich.panel import Panel
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        head = Text.assemble((f"block {self.block} of {self.blocks}", "bold"),
                             f"   layer {len(self.done)} of {self.total}")  # fmt: skip
        bar = ProgressBar(total=self.total or 1, completed=len(self.done),
                          complete_style="color(39)", finished_style="color(39)")  # fmt: skip
        table = Table(box=None, expand=True, pad_edge=False, header_style="dim")
        wide = ("layer", "bits", "blocks", "error", "", "seconds")
        columns = wide if width >= WIDE else ("layer", "error", "seconds")
        for name in columns:
            left = name in ("layer", "")
            table.add_column(name, justify="left" if left else "right", no_wrap=True)
        worst = max((layer.error or 0 for layer in self.done), default=0) or 1.0
        for layer in self.done[-SHOWN:]:
            orders = " ".join(f"{n}×{k}" for k, n in sorted(layer.orders.items())) or "–"
            error = "–" if layer.error is None else f"{layer.error:.1e}"
            cells = (_short(layer.name), f"{layer.stored_bits:.2f}", orders, error,
                     _gauge((layer.error or 0) / worst), f"{layer.seconds:.1f}")  # fmt: skip
            table.add_row(*(cells[wide.index(name)] for name in columns))
        return Panel(Group(head, bar, "", table, "", self._foot()), title=what, title_align="left",
                     border_style="dim")  # fmt: skip

    def _foot(self) -> Any:
        from rich.text import Text

        speed, left = self.tokens_per_second, self.left
        parts = [
            f"{_clock(self.elapsed)} so far",
            "time left not known yet" if left is None else f"{_clock(left)} left",
            *([f"{speed:.0f} tokens/s a block"] if speed else []),
            f"peak memory {size(PeakMemory.read())}",
        ]
        return Text(" · ".join(parts), style="dim")


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


def watching(model: str, attention_block: int | None) -> QuantizeView:
    """Make the view of one model.

    Raises:
        ModelError: There is no such model.
    """
    from quant_dllm.models.source import open_model

    verbose = logging.getLogger("quant_dllm").isEnabledFor(logging.DEBUG)
    return QuantizeView(open_model(model, attention_block).config.blocks, verbose)


def _gauge(share: float) -> Any:
    """Draw a bar of up to ten cells."""
    from rich.text import Text

    eighths = round(80 * min(max(share, 0.0), 1.0))
    bar = "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()
    return Text(bar.ljust(10), style="color(214)")


def _short(name: str) -> str:
    """Leave out what all layers of a model begin with: the block's number and its layer stay."""
    parts = name.split(".")
    at = next((i for i, part in enumerate(parts) if part.isdigit()), 0)
    return ".".join(parts[at:])


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
