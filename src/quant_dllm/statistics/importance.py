"""How much each weight matters: the matrix Z that DAQ and ABMP both read.

Symbols:
    W  weight, [out, in]    U  upper factor of the inverse Hessian, H⁻¹ = Uᵀ U
    D  what stands for the loss of touching a column, [in]    Z  importance, W² / D²
"""

from typing import Literal

from jaxtyping import Float
from torch import Tensor

Saliency = Literal["factor", "inverse"]


def divisor(factor: Float[Tensor, "in in"], saliency: Saliency) -> Float[Tensor, " in"]:
    """Return D of every column.

    Args:
        factor: U.
        saliency: ``"factor"``: the diagonal of U, the saliency of optimal brain surgery once the
            columns to the left are fixed (the release, as SliM-LLM). ``"inverse"``: the
            diagonal of H⁻¹ itself (the paper).

    Reference: Quant-dLLM, arXiv:2510.03274, section on DAQ.
    """
    return factor.diagonal() if saliency == "factor" else factor.square().sum(dim=0)


def importance(
    weight: Float[Tensor, "out some"], d: Float[Tensor, " some"]
) -> Float[Tensor, "out some"]:
    """Estimate the loss of zeroing each weight: ``Z = (W / D)²``."""
    return (weight / d).square()


def emphasis_mask(
    z: Float[Tensor, "out some"], emphasis: float, sigmas: float
) -> Float[Tensor, "out some"]:
    """Weigh each squared error: ``emphasis`` where Z stands out, else 1.

    Args:
        z: Importance of the elements over which mean and deviation are taken.
        emphasis: ω = λ², the weight of an important element's squared error (dimensionless).
        sigmas: τ; an element is important when it is farther from the mean than this many
            deviations.
    """
    standard = (z - z.mean()) / z.std().clamp_min(1e-12)
    return 1.0 + (emphasis - 1.0) * (standard.abs() > sigmas)
