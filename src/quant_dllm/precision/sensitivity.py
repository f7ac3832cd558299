"""One budget over the blocks of all matrices, spent where rounding costs the model most.

    minimise  Σ_b D_b(k_b)   subject to   Σ_b c_b k_b ≤ budget,   k_b in 1 … 4

over all blocks b of the model. Steps k → k + 1 are taken in the order of their gain per bit; where
the gains of a block rise from step to step, the steps are taken at their mean, which is the upper
hull of its curve. This is the best there is but for the last few blocks, which take what is left.

Symbols:
    k_b  order of a block, its bits a weight    D_b  expected increase of the loss at each order
    c_b  bits that one plane of the block takes

References: Shoham and Gersho, "Efficient bit allocation for an arbitrary set of quantizers", 1988;
Dong et al., "HAWQ-V2", arXiv:1911.03852, for a budget over layers by second-order sensitivity.
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar, Literal

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from quant_dllm.errors import RecipeError
from quant_dllm.statistics.layer import Needs
from quant_dllm.statistics.sensitivity import NOISE

MOST = len(NOISE)  # planes of a block


@dataclass(frozen=True, kw_only=True)
class SensitivityBasedBitAllocation:
    """Spend one budget over all matrices by the loss that each block's rounding is expected to add.

    Sensitivities are measured on the 16-bit model before anything is rounded, by one pass forward
    and one back over part of the calibration text: see `statistics.sensitivity`.

    Attributes:
        bits: Average budget over all matrices, in bits a weight; never exceeded. From 1 to 4.
        block_size: Input channels of a block; the last one of a matrix may be shorter.
        counts: What the budget counts: ``"codes"`` alone, or all that is ``"stored"``, with scales.
        tokens: Calibration tokens to measure on, at least one window.
    """

    bits: float = 2.0
    block_size: int = 128
    counts: Literal["codes", "stored"] = "codes"
    tokens: int = 32768
    needs: ClassVar[Needs] = Needs.HESSIAN

    def __post_init__(self) -> None:
        """Refuse a budget that no allocation has."""
        if not 1 <= self.bits <= MOST and self.counts == "codes":
            raise RecipeError(f"precision.bits is {self.bits}; from 1 to {MOST} is wanted.")
        if self.block_size < 1 or self.tokens < 1:
            raise RecipeError(
                f"precision.block_size is {self.block_size} and tokens {self.tokens}; at least 1 "
                "is wanted of each."
            )

    def budget(self, weights: int) -> int:
        """Return the bits that so many weights may take; 2.1 is twenty-one tenths."""
        return int(Fraction(repr(float(self.bits))) * weights)


def spend(
    increase: Float64[Tensor, "blocks orders"], cost: Int[Tensor, " blocks"], budget: int
) -> Int[Tensor, " blocks"]:
    """Return the order of each block, from 1 on.

    Args:
        increase: Expected increase of the loss at each order.
        cost: Bits of one plane.
        budget: Bits of all planes.

    Raises:
        RecipeError: One plane a block is more than the budget.
    """
    orders, left = torch.ones_like(cost), budget - int(cost.sum())
    if left < 0:
        raise RecipeError(
            f"The budget is {budget} bits; one plane a block takes {int(cost.sum())}. "
            "Raise precision.bits."
        )
    gain = upper_hull(-increase.diff(dim=1)) / cost[:, None]
    ranked = gain.flatten().argsort(descending=True, stable=True)
    ranked = ranked[gain.flatten()[ranked] > 0]
    blocks, steps = ranked // gain.shape[1], ranked % gain.shape[1] + 1
    at_once = int((cost[blocks].cumsum(0) <= left).sum())  # all that fits without a look
    orders += blocks[:at_once].bincount(minlength=len(cost))
    left -= int(cost[blocks[:at_once]].sum())
    least = int(cost.min())
    for block, step in zip(blocks[at_once:].tolist(), steps[at_once:].tolist(), strict=True):
        if left < least:
            break
        if orders[block] == step and cost[block] <= left:
            orders[block] += 1
            left -= int(cost[block])
    return orders


def upper_hull(gain: Float64[Tensor, "blocks steps"]) -> Float64[Tensor, "blocks steps"]:
    """Return gains that never rise from step to step: the slopes of the concave hull of their sums.

    Slope k is the least, over the starts up to k, of the greatest mean gain from there to an end
    at k or behind it.
    """
    steps = gain.shape[1]
    found = []
    for k in range(steps):
        starts = [
            torch.stack([gain[:, a : b + 1].mean(1) for b in range(k, steps)]).amax(0)
            for a in range(k + 1)
        ]
        found.append(torch.stack(starts).amin(0))
    return torch.stack(found, dim=1).cummin(dim=1).values  # rounding must not make them rise
