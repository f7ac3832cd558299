"""What to round where the inputs have drifted from those of the full-precision model.

Symbols:
    x̃  an input in the full-precision model    x  the same in the model quantized so far
    D  mean of (x̃ − x) xᵀ                      H⁻¹ = Uᵀ U

Reference: Li et al., "GPTAQ", arXiv:2504.02692, for the objective.
"""

from jaxtyping import Float
from torch import Tensor

from quant_dllm.statistics.layer import LayerStatistics


def towards_full(
    weight: Float[Tensor, "out in"], stats: LayerStatistics, strength: float
) -> Float[Tensor, "out in"]:
    """Return W + strength · W D H⁻¹, D the mean of (x̃ − x) xᵀ.

    At strength 1 it gives, on the inputs x at hand, the products nearest to W x̃: it is where
    ‖W x̃ − Q x‖² has its least value over all Q, and that objective is this distance in H.
    """
    assert stats.drift is not None, "the pipeline gathers what `needs` names"
    U = stats.factor
    return weight + strength / stats.tokens * (weight @ stats.drift) @ U.T @ U
