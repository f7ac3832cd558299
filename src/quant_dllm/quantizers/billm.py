"""BiLLM: one bit a weight, two for the salient columns, two scales for the bell of the others.

    salient columns:  Ŵ = a₁ B₁ + a₂ B₂, the second plane binarizing what the first leaves
    the others:       Ŵ = a_c B where |W| ≤ p, a_s B where |W| > p

How many columns are salient and where p lies is searched in each block, `rounding/partition.py`.
Then the block's error moves to the columns on its right.

Symbols:
    W  block, [out, block]    B  signs of what is binarized    p  break-point
    a  row scales, the mean magnitude of what is binarized, [out]

Reference: Huang et al., "BiLLM", arXiv:2402.04291, algorithms 1 and 2.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from quant_dllm.errors import RecipeError
from quant_dllm.rounding.partition import break_point, salient_columns
from quant_dllm.rounding.sweep import Coded, diagonal_error, sweep
from quant_dllm.statistics.importance import divisor
from quant_dllm.statistics.layer import LayerStatistics, Needs
from quant_dllm.weights.simulated import Part, SimulatedWeight


@dataclass(frozen=True, kw_only=True)
class BiLLM:
    """Binarize three parts of each block apart from each other.

    ``bits[b]`` is the number of planes of the columns that are not salient, each one binarizing
    what those before it leave; the salient columns have one more. One bit is the paper.

    It follows the paper where the published code differs: parts have no mean, the searches are on
    the weights (there: on W²/D²), that for the salient columns with one plane on either side
    (there: two), and p is a multiple of the greatest magnitude (there: a percentile).

    What would be stored of a block of n rows and w channels, s of them salient, with K planes:
    n (K w + s) signs, n (w − s) bits for the area of a weight, w for the salient columns, 16 n (3 K
    + 1) for the row scales of three parts, and 8 for K. At K = 1, w = 128 and a tenth of the
    columns salient that is 2.50 bits a weight; the paper counts the signs, 1.1.

    Attributes:
        salient: Most salient columns in a block.
        splits: Candidates for the break-point, from 1/(``splits`` + 1) of the greatest magnitude.
    """

    salient: int = 30
    splits: int = 9
    needs: ClassVar[Needs] = Needs.HESSIAN

    def __post_init__(self) -> None:
        """Refuse searches without a candidate."""
        if self.salient < 1 or self.splits < 1:
            raise RecipeError(
                f"quantizer.salient {self.salient} and splits {self.splits}: at least 1 is wanted."
            )

    def quantize(
        self,
        weight: Float[Tensor, "out in"],
        stats: LayerStatistics,
        bits: Int[Tensor, " blocks"],
        block_size: int,
    ) -> SimulatedWeight:
        """Quantize with error feedback between blocks."""
        U = stats.factor
        D = divisor(U, "factor")

        def code(block: Tensor, channels: slice, index: int) -> Coded[Part]:
            part = self._binarize(block, D[channels], int(bits[index]))
            return Coded(part, diagonal_error(block, part.values, U[channels, channels]))

        return SimulatedWeight.of(sweep(weight, U, block_size, code))

    def _binarize(
        self, block: Float[Tensor, "out block"], d: Float[Tensor, " block"], order: int
    ) -> Part:
        """Binarize the parts of one block, and count the bits."""
        salient = salient_columns(block, d, self.salient)
        others = (~salient).expand_as(block)
        dense = others & (block.abs() <= break_point(block, others, self.splits))
        values = (
            binarize(block, salient.expand_as(block), order + 1)
            + binarize(block, dense, order)
            + binarize(block, others & ~dense, order)
        )
        (rows, width), s = block.shape, int(salient.sum())
        signs = rows * (order * width + s)
        maps = rows * (width - s) + width
        scales = rows * (2 * order + (order + 1) * (s > 0))
        return Part(values, signs, signs + maps + 16 * scales + 8)


def binarize(
    block: Float[Tensor, "out block"], part: Bool[Tensor, "out block"], order: int
) -> Float[Tensor, "out block"]:
    """Return ``order`` planes of a part, row by row, and zero outside of it."""
    rest, values = block * part, torch.zeros_like(block)
    count = part.sum(dim=1).clamp_min(1)
    for _ in range(order):
        scale = (rest.abs().sum(dim=1) / count).half().float()
        plane = torch.where(rest < 0, -1.0, 1.0) * part * scale[:, None]
        values += plane
        rest -= plane
    return values
