"""Tables of compared recipes: a row a recipe, mean and spread over the seeds."""

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from quant_dllm.record import BASE, ComparisonRecord

RATIOS = ("0.25", "0.5", "0.75", "1.0")
AT = "at " + " ".join(f"{float(ratio):.0%}" for ratio in RATIOS) + " masked"
COLUMNS = ("recipe", "code bits", "stored", "file", "NELBO", "excess", "KL", AT, "top-1", AT,
           "layer error", "seconds", "peak MB")  # fmt: skip


@dataclass(frozen=True)
class Spread:
    """Mean of a number over the seeds, and their standard deviation; NaN with one seed."""

    mean: float
    deviation: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Take it over values, at least one."""
        deviation = statistics.stdev(values) if len(values) > 1 else math.nan
        return cls(statistics.fmean(values), deviation)

    def text(self, digits: int) -> str:
        """Format as ``mean ± deviation``."""
        if math.isnan(self.deviation):
            return f"{self.mean:.{digits}f}"
        return f"{self.mean:.{digits}f} ± {self.deviation:.{digits}f}"


@dataclass(frozen=True)
class Row:
    """All runs of one recipe on one model."""

    name: str
    runs: tuple[ComparisonRecord, ...]

    def spread(self, read: Callable[[ComparisonRecord], float]) -> Spread:
        """Take a number over the seeds."""
        return Spread.of([read(run) for run in self.runs])

    @property
    def excess(self) -> Spread:
        """NELBO less that of the 16-bit model, nats a token."""
        return self.spread(lambda run: run.evaluation["nelbo_excess"])

    @property
    def kl(self) -> Spread:
        """KL to the 16-bit model, nats, mean over the mask ratios."""
        return self.spread(lambda run: run.evaluation["kl"])

    @property
    def stored_bits(self) -> float:
        """Bits of all that the quantized layers store, a weight."""
        return self.runs[0].evaluation["bits"]["stored"]

    @property
    def file_bits(self) -> float:
        """Bits of the weight files, a weight of the model."""
        return self.runs[0].evaluation["bits"]["file"]

    def cells(self) -> tuple[str, ...]:
        """Format the row."""
        bits = self.runs[0].evaluation["bits"]
        nelbo = self.spread(lambda run: run.evaluation["nelbo"]).mean
        head = (self.name, f"{bits['code']:.2f}", f"{bits['stored']:.3f}", f"{bits['file']:.2f}",
                f"{nelbo:.4f}")  # fmt: skip
        if self.name == BASE:
            return (*head, *["–"] * (len(COLUMNS) - len(head)))
        kls = " ".join(f"{self._at('kl_by_mask_ratio', ratio):.3f}" for ratio in RATIOS)
        sames = " ".join(f"{self._at('top1_by_mask_ratio', ratio):.0%}" for ratio in RATIOS)
        top1 = self.spread(lambda run: run.evaluation["top1_agreement"]).mean
        seconds = statistics.median(run.seconds or 0 for run in self.runs)
        peak = max(run.peak_memory or 0 for run in self.runs)
        return (
            *head, self.excess.text(4), self.kl.text(4), kls, f"{top1:.1%}", sames,
            self._layer_error(), f"{seconds:.0f}", f"{peak / 1e6:.0f}",
        )  # fmt: skip

    def _layer_error(self) -> str:
        if not all(run.layer_errors for run in self.runs):
            return "–"
        return f"{self.spread(lambda run: statistics.fmean(run.layer_errors.values())).mean:.4f}"

    def _at(self, key: str, ratio: str) -> float:
        return self.spread(lambda run: run.evaluation[key][ratio]).mean


def rows(records: Iterable[ComparisonRecord]) -> list[Row]:
    """Group records by recipe, in the order in which recipes first appear."""
    groups: dict[str, list[ComparisonRecord]] = {}
    for record in records:
        groups.setdefault(record.name, []).append(record)
    return [Row(name, tuple(group)) for name, group in groups.items()]


def markdown(columns: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Write a table in Markdown; all but the first column stand to the right."""
    rule = ["---", *["--:"] * (len(columns) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in (columns, rule, *lines)) + "\n"
