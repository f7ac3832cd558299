"""ARB-LLM_RC: binary planes with row and column scales, refined in turns, in zones of a block.

    Ŵ = Σ_k (a_k c_kᵀ) ∘ B_k   within each zone

The zones are the salient columns and the others, each divided at a magnitude of its own into a
concentrated and a sparse area (the column-group bitmap). Salient zones have one plane more. Scales
start as means and are set in turns to the minimisers of the zone's squared error, then signs are.

Symbols:
    W  block, [out, block]    B  signs, [order, out, block]    R  what the planes before leave of W
    a  row scales, [order, out]    c  column scales, [order, block]

Reference: Li et al., "ARB-LLM", arXiv:2410.03129, sections 3.3 and 3.4.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from quant_dllm.errors import RecipeError
from quant_dllm.rounding.partition import break_point, salient_columns
from quant_dllm.rounding.planes import TINY, Fit, refine
from quant_dllm.rounding.sweep import Coded, diagonal_error, sweep
from quant_dllm.statistics.importance import divisor
from quant_dllm.statistics.layer import LayerStatistics, Needs
from quant_dllm.weights.simulated import Part, SimulatedWeight


@dataclass(frozen=True, kw_only=True)
class ARBLLM:
    """Fit each zone of each block by alternating refinement.

    ``bits[b]`` is the number of planes of the columns that are not salient; the salient columns
    have one more. One bit is the paper.

    The paper leaves open how the zones are searched; here it is as in BiLLM's paper, the
    break-points of salient and of other columns apart from each other.

    What would be stored of a block of n rows and w channels, s of them salient, with K planes:
    n (K w + s) signs, n w bits for the area of a weight, w for the salient columns, 8 for K, and
    16-bit scales, 2 K (n + w − s) of the others and 2 (K + 1) (n + s) of the salient columns. At
    K = 1, w = 128, n = 4096 and a tenth of the columns salient that is 2.86 bits a weight; the
    paper counts the signs, 1.1.

    Attributes:
        rounds: Passes over scales and signs of a zone.
        salient: Most salient columns in a block.
        splits: Candidates for a break-point, from 1/(``splits`` + 1) of the greatest magnitude.
    """

    rounds: int = 15
    salient: int = 30
    splits: int = 9
    needs: ClassVar[Needs] = Needs.HESSIAN

    def __post_init__(self) -> None:
        """Refuse searches without a candidate."""
        if self.rounds < 0 or self.salient < 1 or self.splits < 1:
            raise RecipeError(
                f"quantizer.rounds {self.rounds}, salient {self.salient} and splits "
                f"{self.splits}: at least 0, 1 and 1 are wanted."
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
        """Fit the zones of one block, and count the bits."""
        salient = salient_columns(block, d, self.salient)
        values, signs, scales = torch.empty_like(block), 0, 0
        for columns, planes in ((salient, order + 1), (~salient, order)):
            rows, width = (w := block[:, columns]).shape
            if width == 0:  # a block of one column has no salient one
                continue
            values[:, columns] = self._fit_areas(w, planes)
            signs += planes * rows * width
            scales += 2 * planes * (rows + width)
        maps = block.numel() + block.shape[1]
        return Part(values, signs, signs + maps + 16 * scales + 8)

    def _fit_areas(self, w: Float[Tensor, "out some"], order: int) -> Float[Tensor, "out some"]:
        """Divide columns at a magnitude, and fit both areas."""
        everything = torch.ones_like(w, dtype=torch.bool)
        dense = w.abs() <= break_point(w, everything, self.splits)
        values = torch.zeros_like(w)
        for area in (dense, ~dense):
            fit = refine(start_inside(w, area, order), w, area.float(), self.rounds, 0.0)
            values += fit.halve().values() * area
        return values


def start_inside(w: Float[Tensor, "out some"], area: Bool[Tensor, "out some"], order: int) -> Fit:
    """Take plane after plane from the means over an area of what is left there."""
    rest, rows, columns, signs = w * area, [], [], []
    for _ in range(order):
        size = rest.abs()
        rows.append(a := size.sum(dim=1) / area.sum(dim=1).clamp_min(1))
        ratio = size / a.clamp_min(TINY)[:, None]
        columns.append(c := ratio.sum(dim=0) / area.sum(dim=0).clamp_min(1))
        signs.append(b := torch.where(rest < 0, -1.0, 1.0))
        rest = (rest - torch.outer(a, c) * b) * area
    return Fit(torch.stack(rows), torch.stack(columns), torch.stack(signs))
