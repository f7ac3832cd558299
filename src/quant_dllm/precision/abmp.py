"""Adaptive Blockwise Mixed Precision: a bit moves from the least to the most important blocks.

Reference: Quant-dLLM, arXiv:2510.03274, section on ABMP.
"""

import logging
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

from jaxtyping import Float, Int
from torch import Tensor

from quant_dllm.errors import RecipeError
from quant_dllm.precision.uniform import WIDEST, Uniform
from quant_dllm.statistics.importance import Saliency, divisor, importance
from quant_dllm.statistics.layer import LayerStatistics, Needs

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class AdaptiveBlockwiseMixedPrecision(Uniform):
    """Rank the blocks of a matrix by ΣZ; the last k lose a bit, the first k gain one.

    k = ⌊ratio · blocks⌋, at most half of them. A short last block keeps the budget: a bit moved
    between blocks of two widths would change the mean, which is exact.

    Attributes:
        ratio: Fraction of the blocks that move at each end: 0.05 for LLaDA, 0.10 for Dream (paper).
        saliency: What Z divides by, see `statistics.importance.divisor`.
    """

    ratio: float = 0.05
    saliency: Saliency = "factor"
    needs: ClassVar[Needs] = Needs.HESSIAN

    def __post_init__(self) -> None:
        """Refuse a trade that has no partner, or would leave a block without bits."""
        super().__post_init__()
        if not 0 <= self.ratio <= 0.5:
            raise RecipeError(f"precision.ratio is {self.ratio}; it must be in [0, 0.5].")
        if self.ratio > 0 and not 2 <= self.bits < WIDEST:
            raise RecipeError(
                f"precision.bits is {self.bits} and ratio {self.ratio}: some blocks would have "
                f"{self.bits - 1} bits and some {self.bits + 1}. Set precision.ratio=0."
            )

    def allocate(
        self, weight: Float[Tensor, "out in"], stats: LayerStatistics
    ) -> Int[Tensor, " blocks"]:
        """Return the bits of each block of input channels; their mean is the budget."""
        bits, size = super().allocate(weight, stats), self.block_size
        whole = weight.shape[1] // size
        k = min(int(self.ratio * len(bits) + 1e-9), whole // 2)  # 1e-9: 0.1 · 30 is 3
        if k == 0:
            if self.ratio > 0:
                _say_that_none_moves(self.ratio, len(bits))
            return bits
        z = importance(weight, divisor(stats.factor, self.saliency))
        score = z.sum(dim=0)[: whole * size].unflatten(0, (whole, size)).sum(dim=1)
        ranked = score.argsort(stable=True).cpu()
        bits[ranked[:k]] -= 1
        bits[ranked[-k:]] += 1
        return bits


@lru_cache
def _say_that_none_moves(ratio: float, blocks: int) -> None:
    """Log it once for each number of blocks, not once a layer."""
    logger.info("ABMP moves no bit in matrices of %d blocks: %g of them is none", blocks, ratio)
