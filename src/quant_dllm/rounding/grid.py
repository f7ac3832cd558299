"""Evenly spaced levels with a scale and a zero point for each row of a group."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from quant_dllm.weights.uniform import Group

SHRINK_STEPS = 80  # of one hundredth of the span each

Span = tuple[Tensor, Tensor]  # the lowest and the highest level of each row


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
        low, high = reach(block)
        if not search:
            return cls._span(low, high, bits)
        shares = (1 - step / 100 for step in range(SHRINK_STEPS))
        return cls.least(block, bits, ((low * s, high * s) for s in shares), squared)

    @classmethod
    def least(
        cls,
        block: Float[Tensor, "out block"],
        bits: int,
        spans: Iterable[Span],
        loss: Callable[[Float[Tensor, "out block"]], Float[Tensor, " out"]],
    ) -> "Grid":
        """Lay a grid over each of the spans, and keep for each row the one of least loss.

        Args:
            block: Weights of one group.
            bits: Bits of a code.
            spans: Candidates; of equals the first is kept.
            loss: Loss of each row, of what a grid's levels are away from the block.
        """
        scale = zero = torch.ones_like(block[:, 0])
        least = torch.full_like(scale, torch.inf)
        for low, high in spans:
            grid = cls._span(low, high, bits)
            now = loss(grid.round(block.T).T - block)
            better = now < least
            least = torch.where(better, now, least)
            scale = torch.where(better, grid.scale, scale)
            zero = torch.where(better, grid.zero, zero)
        return cls(scale, zero, bits)

    @classmethod
    def two_level(cls, block: Float[Tensor, "out block"]) -> "Grid":
        """Put one level on each side of a row's mean, at the mean distance from it: one bit.

        The zero point is about one half: `AffineWeight` stores it, `UniformWeight` could not.
        """
        mean = block.mean(dim=1)
        apart = 2 * (block - mean[:, None]).abs().mean(dim=1)
        scale = affine_scale(apart, block)
        zero = torch.where(block.any(dim=1), 0.5 - mean / scale, 0.0)
        return cls(scale, zero.half().float(), 1)

    @classmethod
    def _span(cls, low: Tensor, high: Tensor, bits: int) -> "Grid":
        """Lay the levels from ``low`` to ``high``; the scale is rounded to what is stored."""
        top = 2**bits - 1
        scale = _storable((high - low) / top)
        return cls(scale, (-low / scale).round().clamp(0, top), bits)

    def codes(self, w: Float[Tensor, "*columns out"]) -> Float[Tensor, "*columns out"]:
        """Return the code of the nearest level."""
        return (w / self.scale).add_(self.zero).round_().clamp_(0, 2**self.bits - 1)

    def round(self, w: Float[Tensor, "*columns out"]) -> Float[Tensor, "*columns out"]:
        """Return the nearest level."""
        return self.codes(w).sub_(self.zero).mul_(self.scale)

    def group(self, values: Float[Tensor, "out block"]) -> Group:
        """Return the codes of values that this grid rounded."""
        return Group(self.codes(values.T).T.int(), self.scale, self.zero, self.bits)


def reach(block: Float[Tensor, "out block"]) -> Span:
    """Return the least and the greatest weight of each row, zero included."""
    return block.amin(dim=1).clamp_max(0), block.amax(dim=1).clamp_min(0)


def squared(errors: Float[Tensor, "out block"]) -> Float[Tensor, " out"]:
    """Sum the squares of each row."""
    return errors.square().sum(dim=1)


def affine_scale(
    scale: Float[Tensor, " out"], block: Float[Tensor, "out block"]
) -> Float[Tensor, " out"]:
    """Round a scale to float16, and up where a row's zero point would not be one.

    A row that is nearly constant needs a zero point of many times its span; this one is at most a
    thousand, where a float16 still tells halves apart.
    """
    return _storable(torch.maximum(scale, block.abs().amax(dim=1) / 1000))


def _storable(scale: Float[Tensor, " out"]) -> Float[Tensor, " out"]:
    """Round a scale to float16; a dead row has none, and every code is then its zero."""
    scale = scale.half().float()
    return torch.where(scale == 0, 1.0, scale)
