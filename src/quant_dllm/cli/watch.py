"""What is seen of a quantization while it runs: a live view, or a line a layer where piped."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from quant_dllm.cli.live import bar, clock, gauge, live, panel
from quant_dllm.cli.show import size, track
from quant_dllm.cli.watch_tuning import TuningView
from quant_dllm.memory import PeakMemory
from quant_dllm.record import LayerRecord

T = TypeVar("T")
SHOWN = 7  # layers that the live view lists
WIDE = 64  # columns of a terminal below which the view says less


@dataclass
class QuantizeView:
    """A `Track` that shows layers, and updates of scales; anything else as `show.track` does.

    Attributes:
        blocks: Blocks of the model.
        verbose: Whether every layer is logged anyway, so that lines would be said twice.
    """

    blocks: int
    verbose: bool = False
    began: float = field(default_factory=time.monotonic)
    first: float | None = None
    done: list[LayerRecord] = field(default_factory=list)
    total: int = 0

    def __call__(self, items: Iterable[T], what: str, total: int) -> Iterator[T]:
        """Pass the items on."""
        if what.startswith("tuning"):
            yield from TuningView()(items, what)
            return
        if not what.startswith("quantizing"):
            yield from track(items, what, total)
            return
        self.began, self.first, self.total, self.done = time.monotonic(), None, total, []
        if sys.stderr.isatty():
            yield from live(items, self.take, lambda width: self.picture(what, width))
        else:
            yield from self._lines(items)

    @property
    def elapsed(self) -> float:
        """Tell the time so far, seconds."""
        return time.monotonic() - self.began

    @property
    def left(self) -> float | None:
        """Guess the time left, seconds: what is left takes as long a layer as what is done.

        What comes before the first layer, measuring sensitivities above all, comes once.
        """
        more = self.total - len(self.done)
        if self.first is None or (len(self.done) < 2 and more):
            return None
        return (time.monotonic() - self.first) / max(len(self.done) - 1, 1) * more

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

    def _lines(self, items: Iterable[T]) -> Iterator[T]:
        """Say one ``key=value`` line a layer."""
        for item in items:
            self.take(item)
            if not self.verbose and isinstance(item, LayerRecord):
                speed, left = self.tokens_per_second, self.left
                print(
                    f"done={len(self.done)}/{self.total} block={self.block}/{self.blocks} "
                    f"{item.line()} tokens_per_second={'-' if speed is None else f'{speed:.0f}'} "
                    f"peak_mb={(PeakMemory.read() or 0) / 1e6:.0f} elapsed_s={self.elapsed:.0f} "
                    f"left_s={'-' if left is None else f'{left:.0f}'}",
                    file=sys.stderr, flush=True,
                )  # fmt: skip
            yield item

    def take(self, item: Any) -> None:
        """Note a layer that is done."""
        if isinstance(item, LayerRecord):
            self.first = self.first or time.monotonic()
            self.done.append(item)

    def picture(self, what: str, width: int) -> Any:
        """Draw the view, for a terminal of so many columns."""
        from rich.table import Table
        from rich.text import Text

        head = Text.assemble((f"block {self.block} of {self.blocks}", "bold"),
                             f"   layer {len(self.done)} of {self.total}")  # fmt: skip
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
                     gauge((layer.error or 0) / worst), f"{layer.seconds:.1f}")  # fmt: skip
            table.add_row(*(cells[wide.index(name)] for name in columns))
        return panel(what, head, bar(len(self.done), self.total), "", table, "", self._foot())

    def _foot(self) -> Any:
        from rich.text import Text

        speed, left = self.tokens_per_second, self.left
        parts = [
            f"{clock(self.elapsed)} so far",
            "time left not known yet" if left is None else f"{clock(left)} left",
            *([f"{speed:.0f} tokens/s a block"] if speed else []),
            f"peak memory {size(PeakMemory.read())}",
        ]
        return Text(" · ".join(parts), style="dim")


def watching(model: str, attention_block: int | None) -> QuantizeView:
    """Make the view of one model.

    Raises:
        ModelError: There is no such model.
    """
    from quant_dllm.models.source import open_model

    verbose = logging.getLogger("quant_dllm").isEnabledFor(logging.DEBUG)
    return QuantizeView(open_model(model, attention_block).config.blocks, verbose)


def _short(name: str) -> str:
    """Leave out what all layers of a model begin with: the block's number and its layer stay."""
    parts = name.split(".")
    at = next((i for i, part in enumerate(parts) if part.isdigit()), 0)
    return ".".join(parts[at:])
