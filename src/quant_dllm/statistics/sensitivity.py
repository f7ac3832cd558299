"""What rounding a layer is expected to cost the whole model, block by block and order by order.

The loss that a small error E of a weight adds is quadratic in it, and the model's own Fisher
information is its curvature. With one weight a token for all output channels,

    KL ≈ ½ tr(E F Eᵀ),   F = Σ_t ḡ_t² x_t x_tᵀ,   ḡ_t² = mean over the outputs of g_t²

Rounding feeds the error of a column to those on its right, so that E = N diag(1/U_jj) U, N being
what each column was off when its turn came: noise that is independent from column to column, and
whose energy is a share ε_k of the column's own at order k. Hence the expected increase

    KL_k ≈ ½ ε_k Σ_j ‖W_j‖² (U F Uᵀ)_jj / U_jj²

is a sum over columns, and so over blocks, that is known before anything is rounded.

Symbols:
    W  weight, [out, in]    H  second moment of the inputs, [in, in]    U  H⁻¹ = Uᵀ U, upper
    x  input of token t     g  gradient of −log p at the layer's output, p drawn from the model
    F  Fisher information, averaged over outputs, [in, in]    ε_k  see `NOISE`

References: Hassibi and Stork, "Optimal Brain Surgeon", 1993, for the quadratic form; Martens,
"New insights on the natural gradient", arXiv:1412.1193, for the Fisher information as curvature.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64
from torch import Tensor

from quant_dllm.statistics.hessian import inverse_factor

NOISE = (1.0, 0.115, 0.029, 0.008)
"""ε of orders 1 to 4: shares of a column's energy that rounding leaves.

At order 2 it is what a plane fit leaves of Gaussian weights, and at 3 and 4 a quarter of the one
before, as measured on fifteen layers of ``tiny``. At order 1 they measured 0.49, and the model was
nearest to the 16-bit one, at equal bits, where it is counted twice: errors as large as those add
more than their squares.
"""


def expected_increase(
    weight: Float[Tensor, "out in"],
    moment: Float[Tensor, "in in"],
    fisher: Float[Tensor, "in in"],
    damping: float,
    block_size: int,
) -> Float64[Tensor, "blocks orders"]:
    """Return the KL to the 16-bit model, nats, that each block is expected to add at each order.

    Args:
        weight: W.
        moment: H or any multiple of it.
        fisher: F, summed over the tokens.
        damping: Fraction of the mean diagonal of H added to its diagonal.
        block_size: Input channels of a block; the last one may be shorter.

    Raises:
        RequestError: The inputs are not finite.
    """
    U = inverse_factor(moment, damping)
    noise = ((U @ fisher) * U).sum(dim=1).clamp_min(0) / U.diagonal().square()  # F is positive
    columns = 0.5 * weight.float().square().sum(dim=0) * noise
    padded = F.pad(columns.double().cpu(), (0, -len(columns) % block_size))
    return padded.view(-1, block_size).sum(dim=1, keepdim=True) * torch.tensor(NOISE).double()
