"""The definition: dequantize a tile of rows, multiply. Every other backend is tested against it."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from quant_dllm.weights.base import QuantizedWeight

TILE = 1 << 20  # weights dequantized at once: 4 MB of float32, which a processor's cache holds
LAUNCHES = 32  # times as many where each step is a kernel that is launched


class Product(torch.autograd.Function):
    """``x Ŵᵀ`` as a function of x; no tile of Ŵ is kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: QuantizedWeight) -> Tensor:
        """Multiply."""
        ctx.weight = weight
        return _product(x, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """Return the gradient of x."""
        y, of_x = grads[0], None
        for rows in tiles(ctx.weight):
            part = y[..., rows] @ ctx.weight.dequantize(rows).to(y.dtype)
            of_x = part if of_x is None else of_x + part
        assert of_x is not None, "a weight has rows"
        return of_x, None


def refuses(x: Float[Tensor, "*batch in"], weight: QuantizedWeight) -> str | None:
    """Refuse nothing."""
    return None


def linear(x: Float[Tensor, "*batch in"], weight: QuantizedWeight) -> Float[Tensor, "*batch out"]:
    """Compute ``x Ŵᵀ``, never holding more than a tile of Ŵ."""
    if x.requires_grad and torch.is_grad_enabled():
        return Product.apply(x, weight)
    return _product(x, weight)


def tiles(weight: QuantizedWeight) -> Iterator[slice]:
    """Cut the rows of a weight."""
    launched = next(iter(weight.tensors().values())).device.type != "cpu"
    rows = max(1, TILE * (LAUNCHES if launched else 1) // weight.in_features)
    for start in range(0, weight.out_features, rows):
        yield slice(start, min(start + rows, weight.out_features))


def _product(x: Tensor, weight: QuantizedWeight) -> Tensor:
    dtype = x.dtype
    if x.device.type == "cpu":
        x = x.float()  # few processors multiply 16-bit numbers faster, and the tile is float32
    parts = [F.linear(x, weight.dequantize(rows).to(x.dtype)).to(dtype) for rows in tiles(weight)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
