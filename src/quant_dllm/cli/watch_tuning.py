"""What is seen of tuning while it runs: how far it is, and how near it is to the 16-bit model."""

import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from quant_dllm.cli.live import bar, clock, gauge, live, panel
from quant_dllm.cli.show import LINE_EVERY, size
from quant_dllm.memory import PeakMemory
from quant_dllm.record import TuningStep

T = TypeVar("T")
SHOWN = 7  # looks that the live view lists


@dataclass
class TuningView:
    """Shows updates: a live view, or a line at every look and every few seconds where piped."""

    began: float = field(default_factory=time.monotonic)
    seen: int = 0
    now: TuningStep | None = None
    looks: list[tuple[int, float]] = field(default_factory=list)

    def __call__(self, items: Iterable[T], what: str) -> Iterator[T]:
        """Pass the items on."""
        if sys.stderr.isatty():
            yield from live(items, self.take, lambda width: self.picture(what))
        else:
            yield from self._lines(items)

    @property
    def elapsed(self) -> float:
        """Tell the time so far, seconds."""
        return time.monotonic() - self.began

    @property
    def tokens_per_second(self) -> float:
        """Tell how many tokens were learned from in a second."""
        return (self.now.tokens if self.now else 0) * self.seen / max(self.elapsed, 1e-9)

    def take(self, item: Any) -> None:
        """Note an update that is done."""
        if isinstance(item, TuningStep):
            self.now, self.seen = item, self.seen + 1
            if self.seen == 1:
                self.looks = [(0, item.curve[0])]
            if len(item.curve) > len(self.looks):
                self.looks += [(item.done, kl) for kl in item.curve[len(self.looks) :]]

    def _lines(self, items: Iterable[T]) -> Iterator[T]:
        said, looks = time.monotonic(), 1
        for item in items:
            self.take(item)
            now = time.monotonic()
            if self.now and (len(self.looks) > looks or now - said >= LINE_EVERY):
                said, looks = now, len(self.looks)
                print(
                    f"tuning={self.now.done}/{self.now.steps} kl={self.now.loss:.4f} "
                    f"validation={self.looks[-1][1]:.4f} first={self.looks[0][1]:.4f} "
                    f"tokens_per_second={self.tokens_per_second:.0f} "
                    f"peak_mb={(PeakMemory.read() or 0) / 1e6:.0f} elapsed_s={self.elapsed:.0f} "
                    f"left_s={self.now.seconds_left:.0f}",
                    file=sys.stderr, flush=True,
                )  # fmt: skip
            yield item

    def picture(self, what: str) -> Any:
        """Draw the view."""
        from rich.table import Table
        from rich.text import Text

        step = self.now
        done, steps = (step.done, step.steps) if step else (0, 1)
        head = Text(f"update {done} of {steps}" if step else "asking the 16-bit model", "bold")
        table = Table(box=None, expand=True, pad_edge=False, header_style="dim")
        for name in ("behind update", "KL on validation text", ""):
            table.add_column(name, justify="right" if name else "left", no_wrap=True)
        for number, kl in self.looks[-SHOWN:]:
            table.add_row(str(number), f"{kl:.4f}", gauge(kl / max(self.looks[0][1], 1e-9)))
        return panel(what, head, bar(done, steps), "", table, "", self._foot())

    def _foot(self) -> Any:
        from rich.text import Text

        step = self.now
        parts = [
            f"{clock(self.elapsed)} so far",
            f"{clock(step.seconds_left)} left" if step else "time left not known yet",
            *([f"{self.tokens_per_second:.0f} tokens/s"] if step else []),
            f"peak memory {size(PeakMemory.read())}",
        ]
        return Text(" · ".join(parts), style="dim")
