"""Data-aware Any-order Quantizer: a sum of binary planes, scaled by row and by column.

Minimise ‖Λ ∘ (W − Ŵ)‖² with Ŵ = Σ_k (a_k c_kᵀ) ∘ B_k in each block of input channels, inside the
sweep that feeds a block's error to its right. Λ marks the elements whose importance stands out.

Reference: Quant-dLLM, arXiv:2510.03274, section on DAQ; `method.md` section 3 for the forms.
"""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float, Int
from torch import Tensor

from quant_dllm.errors import RecipeError
from quant_dllm.rounding.planes import ColumnRounding, Fit, fit_greedy, fit_joint
from quant_dllm.rounding.scale_codes import code_scales
from quant_dllm.rounding.second_order import Matrix, refine
from quant_dllm.rounding.sweep import Coded, block_error, column_by_column, diagonal_error, sweep
from quant_dllm.statistics.drift import towards_full
from quant_dllm.statistics.hessian import damp
from quant_dllm.statistics.importance import Saliency, divisor, emphasis_mask, importance
from quant_dllm.statistics.layer import LayerStatistics, Needs
from quant_dllm.weights.binary import BinaryWeight, Planes
from quant_dllm.weights.compact import FEWEST, MOST, CompactWeight
from quant_dllm.weights.packing import packed_width


@dataclass(frozen=True, kw_only=True)
class DataAwareAnyOrderQuantizer:
    """Fit each block by successive re-scaling and re-rounding.

    Attributes:
        rounds: Most passes over the planes of one block.
        tolerance: Stop when a pass lowers the objective by less than this fraction; 0: never.
        fitting: ``"joint"``: all planes are refitted together (release). ``"greedy"``: a plane is
            fitted to what the planes before it leave, and then left alone (paper).
        emphasis: ω = λ², the weight of an important element's squared error; 1 leaves Λ out.
        sigmas: τ, how many deviations from the mean make an element important.
        saliency: What Z = W²/D² divides by, see `statistics.importance.divisor`.
        scope: Z is standardised over the current ``"block"``, on weights that carry the errors of
            the blocks before it (release), or over the original ``"matrix"`` (paper).
        feedback: ``"none"``; ``"diagonal"``: a block's error over diag(U) (release); ``"exact"``:
            the triangular solve; ``"in-sweep"``: scales are fixed first, then each column's signs
            are chosen when the sweep reaches it, with feedback inside the block.
        refinements: Most rounds of second-order steps on the swept matrix: row scales, column
            scales and signs refitted in turns against the full Hessian (ours, `method.md` 8).
        scales: Bits of a stored scale: 16 (floats), or 4 to 8 (codes). With refinements the codes
            are chosen against the full Hessian too, else each is the nearest.
        drift: How much of the drift of the inputs is made up for. A layer of a model that is
            quantized so far sees x where the full-precision model saw x̃; 0 rounds towards W x, 1
            towards W x̃ (ours, the target of GPTAQ, arXiv:2504.02692).
    """

    rounds: int = 15
    tolerance: float = 0.0
    fitting: Literal["joint", "greedy"] = "joint"
    emphasis: float = 3.0
    sigmas: float = 2.0
    saliency: Saliency = "factor"
    scope: Literal["block", "matrix"] = "block"
    feedback: Literal["none", "diagonal", "exact", "in-sweep"] = "in-sweep"
    refinements: int = 0
    scales: int = 16
    drift: float = 0.0

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing."""
        least = min(self.rounds, self.tolerance, self.refinements, self.drift)
        if least < 0 or self.emphasis <= 0:
            raise RecipeError(
                f"quantizer.rounds {self.rounds}, tolerance {self.tolerance}, refinements "
                f"{self.refinements}, drift {self.drift} and emphasis {self.emphasis}: the last "
                "must be above 0, the others must not be negative."
            )
        if self.scales not in (16, *range(FEWEST, MOST + 1)):
            raise RecipeError(
                f"quantizer.scales is {self.scales}; 16, or {FEWEST} to {MOST} bits are wanted."
            )

    @property
    def needs(self) -> Needs:
        """Read second moments, and the drift where it is made up for."""
        return Needs.HESSIAN | Needs.DRIFT if self.drift else Needs.HESSIAN

    def quantize(
        self,
        weight: Float[Tensor, "out in"],
        stats: LayerStatistics,
        bits: Int[Tensor, " blocks"],
        block_size: int,
    ) -> BinaryWeight | CompactWeight:
        """Quantize; ``bits[b]`` is the number of binary planes of block ``b``."""
        if self.drift:
            weight = towards_full(weight, stats, self.drift)
        planes = self._sweep(weight, stats, bits, block_size)
        if self.refinements:
            stats.forget_factor()
            matrix = Matrix.of(weight.float(), damp(stats.hessian, stats.damping), planes)
            refine(matrix, self.refinements)
            if self.scales < 16:
                return code_scales(matrix, self.scales, block_size)
            planes = matrix.planes()
        if self.scales < 16:
            return CompactWeight.of(planes, block_size, self.scales)
        return BinaryWeight.of(planes, block_size)

    def _sweep(
        self,
        weight: Float[Tensor, "out in"],
        stats: LayerStatistics,
        bits: Int[Tensor, " blocks"],
        block_size: int,
    ) -> list[Planes]:
        """Round the blocks from left to right."""
        U = stats.factor
        D = divisor(U, self.saliency)
        whole = self._emphasis(weight, D) if self.scope == "matrix" else None

        def code(block: Tensor, channels: slice, index: int) -> Coded[Planes]:
            mask = self._emphasis(block, D[channels]) if whole is None else whole[:, channels]
            fitting = fit_joint if self.fitting == "joint" else fit_greedy
            weighed = None if self.emphasis == 1 else mask
            fit = fitting(block, weighed, int(bits[index]), self.rounds, self.tolerance).halve()
            return self._place(fit, block, U[channels, channels])

        return sweep(weight, U, block_size, code)

    def plane_bits(self, out: int, width: int) -> int:
        """Return what one plane of a block [out, width] takes in a file, with its scales, bits."""
        signs = 8 * out * packed_width(width)
        if self.scales == 16:
            return signs + 16 * (out + width)
        grids = 4 * 16  # low and step of the row scales, and of the column scales
        return signs + 8 * self.scales * (packed_width(out) + packed_width(width)) + grids

    def _emphasis(self, weight: Tensor, D: Tensor) -> Tensor:
        return emphasis_mask(importance(weight, D), self.emphasis, self.sigmas)

    def _place(self, fit: Fit, block: Tensor, U: Tensor) -> Coded[Planes]:
        """Settle the signs of a fitted block, and the error to feed on."""
        if self.feedback == "in-sweep":
            return signs_in_sweep(fit, block, U)
        error = {"none": None, "diagonal": diagonal_error, "exact": block_error}[self.feedback]
        return Coded(fit.freeze(), error(block, fit.values(), U) if error else None)


def signs_in_sweep(
    fit: Fit, block: Float[Tensor, "out block"], factor: Float[Tensor, "block block"]
) -> Coded[Planes]:
    """Choose each column's signs when the sweep reaches it, the scales being fixed.

    Reference: `method.md` section 3, third form of error feedback.
    """
    rounding = ColumnRounding(fit.rows, fit.columns)
    _, error = column_by_column(block, factor, rounding)
    return Coded(Planes(rounding.signs() > 0, fit.rows, fit.columns), error)
