"""What becomes of the embedding and the head, which are outside the blocks.

At two bits they are more than half of the file of an 8B model that leaves them at 16.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from quant_dllm.errors import RecipeError
from quant_dllm.rounding.sweep import Coded, column_by_column, sweep
from quant_dllm.statistics.drift import towards_full
from quant_dllm.statistics.layer import LayerStatistics, Needs
from quant_dllm.weights.finer import FinerWeight
from quant_dllm.weights.grouped import GroupedWeight
from quant_dllm.weights.packing import packed_width

TILE = 1 << 22  # weights rounded at once
LAUNCHES = 8  # times as many where each step is a kernel that is launched
SHARES = tuple(1 - step / 50 for step in range(16))  # of a group's reach, down to 0.7
FINE = 16  # levels of eight bits to one of four


@dataclass(frozen=True, kw_only=True)
class Unchanged:
    """Embedding and head as the model has them (paper)."""

    needs: ClassVar[Needs] = Needs.NOTHING
    reads_text: ClassVar[bool] = False


@dataclass(frozen=True, kw_only=True)
class Grouped:
    """Evenly spaced levels in groups, the clip of each searched by its squared error.

    Attributes:
        bits: Of a code.
        block_size: Channels of a group.
        finer: With four bits: share of the rows that have eight, those of the mask token and of
            the tokens that the calibration text has most often.
        behind: The head is rounded behind the blocks, in a sweep that feeds errors on, by what it
            receives at masked positions; else to nearest. A head that is the embedding's transpose
            is always rounded to nearest, before the blocks.
        drift: How much of the drift of what the head receives is made up for, see `DAQ`'s.
    """

    bits: Literal[4, 8] = 8
    block_size: int = 128
    finer: float = 0.0
    behind: bool = False
    drift: float = 0.0

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing."""
        if self.block_size < 1:
            raise RecipeError(f"outside.block_size is {self.block_size}; 1 or more is wanted.")
        if not 0 <= self.finer < 1:
            raise RecipeError(
                f"outside.finer is {self.finer:g}; a share of rows, 0 to below 1, is wanted."
            )
        if self.finer and self.bits != 4:
            raise RecipeError(
                f"outside.finer is {self.finer:g}, rows of eight bits among those of four, and "
                f"outside.bits is {self.bits}. Set outside.finer=0."
            )
        if self.drift < 0:
            raise RecipeError(f"outside.drift is {self.drift:g}; 0 or more is wanted.")
        if self.drift and not self.behind:
            raise RecipeError(
                f"outside.drift is {self.drift:g}, and the head is not rounded behind the blocks. "
                "Set outside.drift=0 or outside.behind=true."
            )

    @property
    def needs(self) -> Needs:
        """Say what is read of the calibration."""
        if not self.behind:
            return Needs.NOTHING
        return Needs.HESSIAN | Needs.DRIFT if self.drift else Needs.HESSIAN

    @property
    def reads_text(self) -> bool:
        """Tell whether it looks at the calibration text, or at what the model makes of it."""
        return self.behind or self.finer > 0

    def quantize(
        self,
        weight: Float[Tensor, "out in"],
        finer: Bool[Tensor, " out"] | None = None,
        stats: LayerStatistics | None = None,
    ) -> GroupedWeight:
        """Round a weight, some rows at a time.

        Args:
            weight: Of embedding or head.
            finer: Which rows have eight bits in place of four.
            stats: Of the inputs, if errors are fed on.
        """
        fine = torch.ones(len(weight), 1, device=weight.device)
        if finer is not None:
            fine[finer] = FINE
        rows = max(1, TILE * (LAUNCHES if weight.is_cuda else 1) // weight.shape[1])
        parts = [
            self._round(part.float(), some, stats)
            for part, some in zip(weight.split(rows), fine.split(rows), strict=True)
        ]
        codes, scales = (torch.cat(found) for found in zip(*parts, strict=True))
        if finer is None:
            return GroupedWeight.of(codes, scales, self.bits, self.block_size)
        return FinerWeight.split(codes, scales, finer, self.block_size)

    def stored_bytes(self, out: int, inputs: int) -> int:
        """Return what a weight [out, in] takes."""
        a_row = -(-inputs * self.bits // 8) + 2 * -(-inputs // self.block_size)
        marks = packed_width(out) if self.finer else 0
        return out * a_row + marks + self.finer_rows(out) * -(-inputs // 2)

    def finer_rows(self, out: int) -> int:
        """Count the rows of eight bits among those of four."""
        return max(1, int(self.finer * out)) if self.finer else 0

    def _round(
        self, weight: Float[Tensor, "rows in"], fine: Tensor, stats: LayerStatistics | None
    ) -> tuple[Tensor, Tensor]:
        """Return codes [rows, in] and scales [rows, groups]."""
        if stats is not None and self.drift:
            weight = towards_full(weight, stats, self.drift)
        factor = None if stats is None else stats.factor

        def code(group: Tensor, channels: slice, index: int) -> Coded[tuple[Tensor, Tensor]]:
            levels = Levels.fit(group, fine, 2 ** (self.bits - 1))
            if factor is None:
                return Coded((levels.codes(group), levels.scale), None)
            U = factor[channels, channels]
            values, error = column_by_column(group, U, lambda _, w: levels.round(w[:, None])[:, 0])
            return Coded((levels.codes(values), levels.scale), error)

        groups = sweep(weight, factor, self.block_size, code)
        codes, scales = zip(*groups, strict=True)
        return torch.cat(codes, dim=1).to(torch.uint8), torch.cat(scales, dim=1).half()


@dataclass(frozen=True)
class Levels:
    """Evenly spaced levels around zero, for each row of a group.

    Attributes:
        scale: What is stored: the distance of two levels, in finer rows of `FINE`.
        step: Distance of two levels.
        middle: Code of zero: half of all codes.
    """

    scale: Float[Tensor, "rows 1"]
    step: Float[Tensor, "rows 1"]
    middle: Float[Tensor, "rows 1"]

    @classmethod
    def fit(cls, group: Float[Tensor, "rows group"], fine: Tensor, half: int) -> "Levels":
        """Find the reach of each row whose levels are nearest to it, in squares.

        Args:
            group: Weights.
            fine: `FINE` for finer rows, 1 for others.
            half: Half of a coarse row's codes.
        """
        farthest = group.gather(1, group.abs().argmax(1, keepdim=True))
        best, least = torch.zeros_like(farthest), torch.full_like(farthest, torch.inf)
        for share in SHARES:
            scale = (farthest * (share / -half)).half().float()
            levels = cls(scale, scale / fine, half * fine)
            error = (levels.round(group) - group).square_().sum(1, keepdim=True)
            best = torch.where(error < least, scale, best)
            least = torch.minimum(error, least)
        return cls(best, best / fine, half * fine)

    def codes(self, weight: Float[Tensor, "rows some"]) -> Float[Tensor, "rows some"]:
        """Return the nearest codes; where all is zero there is no scale, and they mean zero."""
        step = torch.where(self.step == 0, torch.inf, self.step)
        nearest = (weight / step).round_().add_(self.middle)
        return nearest.clamp_(min=torch.zeros_like(self.middle), max=2 * self.middle - 1)

    def round(self, weight: Float[Tensor, "rows some"]) -> Float[Tensor, "rows some"]:
        """Return the nearest levels."""
        return self.codes(weight).sub_(self.middle).mul_(self.step)
