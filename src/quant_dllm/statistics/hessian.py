"""The one factorisation that every second-order method shares.

Symbols:
    H  second moment of the inputs, [in, in]    U  upper factor, H⁻¹ = Uᵀ U
"""

import logging

import torch
from jaxtyping import Float
from torch import Tensor

from quant_dllm.errors import RequestError

logger = logging.getLogger(__name__)

ESCALATIONS = 4


def damp(hessian: Float[Tensor, "in in"], damping: float) -> Float[Tensor, "in in"]:
    """Add ``damping`` times the mean of the diagonal to the diagonal; a dead input gets one.

    An input that was always zero has a zero row: any rounding of its column is right, and the
    one on its diagonal keeps the matrix invertible.
    """
    diagonal = hessian.diagonal()
    dead = (diagonal == 0).to(hessian.dtype)
    damped = hessian.clone()
    damped.diagonal().add_(dead + damping * diagonal.mean())
    return damped


def inverse_factor(
    hessian: Float[Tensor, "in in"], damping: float = 0.01
) -> Float[Tensor, "in in"]:
    """Factor the inverse Hessian: the upper ``U`` with ``H⁻¹ = Uᵀ U``.

    Rows and columns of H are reversed, so that one Cholesky factorisation and one triangular
    inverse give U: inverting H first would cost a second factorisation and lose digits.

    Args:
        hessian: ``Σ x xᵀ``; it is not modified.
        damping: Fraction of the mean diagonal that is added to the diagonal (dimensionless).
            Where float32 finds the result not positive definite, ten times as much is tried,
            up to four times, and logged.

    Returns:
        Upper triangular ``U``. Row ``j`` is what GPTQ propagates when column ``j`` is rounded.

    Raises:
        RequestError: The inputs are not finite, or the Hessian defies every damping.

    Reference:
        Frantar et al., "GPTQ", arXiv:2210.17323, section 3.3, step 3.
    """
    if not torch.isfinite(hessian).all():
        raise RequestError(
            "The inputs of a layer are not finite: the model overflows on the calibration text. "
            "Calibrate in float32, or look for broken weights."
        )
    for strength in (damping * 10**attempt for attempt in range(ESCALATIONS + 1)):
        flipped = damp(hessian, strength).flip(0, 1)
        lower, failed = torch.linalg.cholesky_ex(flipped)
        del flipped  # half a gigabyte where a layer has 12288 inputs
        if not failed:
            # flip(H) = L Lᵀ, so H⁻¹ = flip(L⁻ᵀ) flip(L⁻¹) = Uᵀ U with U = flip(L⁻¹), upper
            found = torch.eye(len(hessian), dtype=hessian.dtype, device=hessian.device).mT
            torch.linalg.solve_triangular(lower, found, upper=False, out=found)
            del lower
            return found.flip(0, 1)
        logger.warning("the Hessian is not positive definite at damping %.3g", strength)
    raise RequestError(
        f"A layer's Hessian is not positive definite even at {10**ESCALATIONS} times the damping. "
        "Calibrate on more text, or raise it with --set calibration.damping=…"
    )
