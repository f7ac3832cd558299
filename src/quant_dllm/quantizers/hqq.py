"""HQQ, half-quadratic quantization: zero points fitted by a loss that forgives outliers, no data.

    minimise over z   Σ |w − s (q − z)|^p,   q = round(w/s + z) within its bits,   p < 1

The scale s spans minimum to maximum. The loss is split: e stands in for the error, pulled to it by
a square of weight β that grows, so that each step has a closed form:

    e ← shrink(w − s (q − z)),  shrink(x) = sign(x) max(|x| − |x|^(p−1)/β, 0)
    z ← mean over the group of  q − (w − e)/s

Symbols:
    w  weight of a group    q  code    s  scale    z  zero point    e  error without its small part

Reference: Badri and Shaji, "Half-Quadratic Quantization of Large Machine Learning Models", 2023,
https://mobiusml.github.io/hqq_blog, and the hqq package by the authors.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from quant_dllm.errors import RecipeError
from quant_dllm.rounding.grid import Grid, affine_scale
from quant_dllm.rounding.sweep import Coded, sweep
from quant_dllm.statistics.layer import LayerStatistics, Needs
from quant_dllm.weights.affine import AffineWeight
from quant_dllm.weights.uniform import Group


@dataclass(frozen=True, kw_only=True)
class HalfQuadraticQuantizer:
    """Fit each group's zero point, a float16; round to nearest.

    It differs from the hqq package in four ways. Each group keeps its best zero point, by mean
    absolute error; the package stops all groups of a matrix together when their mean no longer
    falls, one step late. β grows, as in the article; the package's default solver leaves it. At
    four bits the package rounds the first zero point to a whole number; here none is. And its
    groups are of 64 by default; those of the recipes are of 128, as every other method's.

    Attributes:
        norm: p, the power of the loss, above 0 and at most 1.
        beta: β at first, in units of weight^(p−2): an error below β^(−1/(2−p)), 0.17 by default,
            is shrunk to nothing.
        kappa: κ, what β grows by in a round.
        rounds: Rounds of the two steps.
    """

    norm: float = 0.7
    beta: float = 10.0
    kappa: float = 1.01
    rounds: int = 20
    needs: ClassVar[Needs] = Needs.NOTHING

    def __post_init__(self) -> None:
        """Refuse numbers for which the steps are not defined."""
        if not 0 < self.norm <= 1 or self.beta <= 0 or self.kappa < 1 or self.rounds < 0:
            raise RecipeError(
                f"quantizer.norm {self.norm}, beta {self.beta}, kappa {self.kappa} and rounds "
                f"{self.rounds}: in (0, 1], above 0, at least 1 and at least 0 are wanted."
            )

    def quantize(
        self,
        weight: Float[Tensor, "out in"],
        stats: LayerStatistics,
        bits: Int[Tensor, " blocks"],
        block_size: int,
    ) -> AffineWeight:
        """Round each group to its own grid."""

        def code(block: Tensor, channels: slice, index: int) -> Coded[Group]:
            return Coded(self.fit(block, int(bits[index])).group(block), None)

        return AffineWeight.of(sweep(weight, None, block_size, code), block_size)

    def fit(self, block: Float[Tensor, "out block"], bits: int) -> Grid:
        """Return the grid of least mean absolute error among those that the rounds pass."""
        low, high = block.amin(dim=1), block.amax(dim=1)
        scale = affine_scale((high - low) / (2**bits - 1), block)
        zero = best = -low / scale
        least, beta = torch.full_like(low, torch.inf), self.beta
        for _ in range(self.rounds + 1):
            codes = Grid(scale, zero, bits).codes(block.T).T
            error = block - scale[:, None] * (codes - zero[:, None])
            now = error.abs().mean(dim=1)
            best = torch.where(now < least, zero, best)
            least = torch.minimum(now, least)
            kept = shrink(error, beta, self.norm)
            zero = (codes - (block - kept) / scale[:, None]).mean(dim=1)
            beta *= self.kappa
        return Grid(scale, best.half().float(), bits)


def shrink(x: Float[Tensor, "*shape"], beta: float, norm: float) -> Float[Tensor, "*shape"]:
    """Step towards the least of ``|e|^p + β/2 (e − x)²``: small errors vanish, large ones stay."""
    size = x.abs()
    return x.sign() * (size - size.pow(norm - 1) / beta).clamp_min(0)
