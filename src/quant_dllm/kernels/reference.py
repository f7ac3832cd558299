"""The definition: dequantize a tile of rows, multiply. Every other backend is tested against it."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from quant_dllm.weights.base import QuantizedWeight

TILE = 1 << 22  # weights dequantized at once: 16 MB of float32


def refuses(x: Float[Tensor, "*batch in"], weight: QuantizedWeight) -> str | None:
    """Refuse nothing."""
    return None


def linear(x: Float[Tensor, "*batch in"], weight: QuantizedWeight) -> Float[Tensor, "*batch out"]:
    """Compute ``x Ŵᵀ``, never holding more than a tile of Ŵ."""
    rows = max(1, TILE // weight.in_features)
    parts = [
        F.linear(x, weight.dequantize(slice(start, start + rows)).to(x.dtype))
        for start in range(0, weight.out_features, rows)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
