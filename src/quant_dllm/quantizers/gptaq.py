"""GPTAQ: GPTQ whose target is the output of the full-precision model, on its own, cleaner inputs.

A layer of a model that is quantized so far sees x where the full-precision model saw x̃. GPTQ keeps
W x; this method keeps W x̃. When column q has been rounded, the columns F to its right move by

    −(w_q − ŵ_q) x_q Xᵀ_F H⁻¹_F   as in GPTQ,   and by   + w_q (x̃_q − x_q) Xᵀ_F H⁻¹_F = w_q P_qF

w_q being the column as the sweep reached it: moved by the columns on its left, not yet rounded.

Symbols:
    D  drift, the mean of (x̃ − x) xᵀ, [in, in]    U  upper factor of the inverse Hessian, H⁻¹ = Uᵀ U
    P  correction, [in, in]; H_F⁻¹ = U_FFᵀ U_FF gives all its rows at once, P = triu(D Uᵀ, 1) U

Reference: Li et al., "GPTAQ", arXiv:2504.02692. The published code differs from its derivation in
two places. It uses the column before rounding inside a block, but the rounded one across blocks;
here it is the former everywhere, so that the result does not depend on where the blocks end. And
it multiplies P by a constant 0.25 that the derivation does not have, see ``strength``. Grids are
those of `gptq`, in groups; the authors' scripts search a clip for whole rows, see ``search``.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from quant_dllm.errors import RecipeError
from quant_dllm.rounding.grid import Grid
from quant_dllm.rounding.sweep import Coded, column_by_column, sweep
from quant_dllm.statistics.layer import LayerStatistics, Needs
from quant_dllm.weights.uniform import Group, UniformWeight


@dataclass(frozen=True, kw_only=True)
class GPTAQ:
    """Sweep with in-block feedback and the drift correction on evenly spaced levels.

    Attributes:
        strength: Factor of the correction. 0.25 is ``alpha`` of the authors' code, with which the
            published results were made; 1 is the derivation; 0 is GPTQ.
        search: Shrink each group's span to where its squared error is least.
    """

    strength: float = 0.25
    search: bool = False
    needs: ClassVar[Needs] = Needs.HESSIAN | Needs.DRIFT

    def __post_init__(self) -> None:
        """Refuse a correction that would drive away from the target."""
        if self.strength < 0:
            raise RecipeError(f"quantizer.strength is {self.strength}; at least 0 is wanted.")

    def quantize(
        self,
        weight: Float[Tensor, "out in"],
        stats: LayerStatistics,
        bits: Int[Tensor, " blocks"],
        block_size: int,
    ) -> UniformWeight:
        """Quantize with error feedback and correction."""
        assert stats.drift is not None, "the pipeline gathers what `needs` names"
        U = stats.factor
        P = self.strength * drift_correction(stats.drift / stats.tokens, U)

        def code(block: Tensor, channels: slice, index: int) -> Coded[Group]:
            grid, own = Grid.fit(block, int(bits[index]), self.search), (channels, channels)
            values, error = column_by_column(block, U[own], lambda _, w: grid.round(w), P[own])
            return Coded(grid.group(values), error, values + error * U.diagonal()[channels])

        return UniformWeight.of(sweep(weight, U, block_size, code, P), block_size)


def drift_correction(
    drift: Float[Tensor, "in in"], factor: Float[Tensor, "in in"]
) -> Float[Tensor, "in in"]:
    """Return P: row q is D_qF H_F⁻¹ on the columns F to the right of q, and zero elsewhere."""
    return torch.triu(drift @ factor.T, diagonal=1) @ factor
