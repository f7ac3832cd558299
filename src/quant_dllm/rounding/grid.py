"""Evenly spaced levels with a scale and a zero point for each row of a group."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from quant_dllm.weights.uniform import Group

SHRINK_STEPS = 80  # of one hundredth of the span each


@dataclass(frozen=True)
class Grid:
    """Levels ``scale · (code − zero)`` for ``code`` in 0 … 2^bits − 1, a grid for each row."""

    scale: Float[Tensor, " out"]
    zero: Float[Tensor, " out"]
    bits: int

    @classmethod
    def fit(cls, block: Float[Tensor, "out block"], bits: int, search: bool = False) -> "Grid":
        """Span each row from its minimum to its maximum, zero included.

        Args:
            block: Weights of one group.
            bits: Bits of a code.
            search: Shrink each row's span to where its squared error is least.
        """
        low, high = block.amin(dim=1).clamp_max(0), block.amax(dim=1).clamp_min(0)
        best = cls._span(low, high, bits)
        if not search:
            return best
        least = best._error(block)
        for step in range(1, SHRINK_STEPS):
            share = 1 - step / 100
            grid = cls._span(low * share, high * share, bits)
            error = grid._error(block)
            better = error < least
            least = torch.where(better, error, least)
            best = cls(
                torch.where(better, grid.scale, best.scale),
                torch.where(better, grid.zero, best.zero),
                bits,
            )
        return best

    @classmethod
    def _span(cls, low: Tensor, high: Tensor, bits: int) -> "Grid":
        """Lay the levels from ``low`` to ``high``; the scale is rounded to what is stored."""
        top = 2**bits - 1
        scale = ((high - low) / top).half().float()
        scale = torch.where(scale == 0, 1.0, scale)  # a dead row: every code is its zero
        return cls(scale, (-low / scale).round().clamp(0, top), bits)

    def _error(self, block: Float[Tensor, "out block"]) -> Float[Tensor, " out"]:
        return (self.round(block.T).T - block).square().sum(dim=1)

    def codes(self, w: Float[Tensor, "*columns out"]) -> Float[Tensor, "*columns out"]:
        """Return the code of the nearest level."""
        return (w / self.scale).round_().add_(self.zero).clamp_(0, 2**self.bits - 1)

    def round(self, w: Float[Tensor, "*columns out"]) -> Float[Tensor, "*columns out"]:
        """Return the nearest level."""
        return self.codes(w).sub_(self.zero).mul_(self.scale)

    def group(self, values: Float[Tensor, "out block"]) -> Group:
        """Return the codes of values that this grid rounded."""
        codes = self.codes(values.T).T.int()
        return Group(codes, self.scale, self.zero.int(), self.bits)
