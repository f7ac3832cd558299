"""Binary layers whose scales can be learned, while their planes stay packed.

Symbols:
    a  row scales, a column a plane    c  column scales, plane after plane    S  signs ±1
    Ŵ = Σ_k (a_k c_kᵀ) ∘ S_k           y = x Ŵᵀ                               D  slope of Ŵ
"""

from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from quant_dllm.linear import QuantLinear
from quant_dllm.weights.binary import SignPlanes
from quant_dllm.weights.packing import Place, packed_width, unpack


class PlaneProduct(torch.autograd.Function):
    """``x Ŵᵀ`` as a function of x, a and c.

    Ŵ is kept for the backward pass beside the arguments: where blocks recompute, one block's at a
    time. The gradients take one matrix more, D = ∂L/∂Ŵ, of which a plane sees

        ∂a_k = (D ∘ S_k) c_k,    ∂c_k = (D ∘ S_k)ᵀ a_k.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor, columns: Tensor, weight: SignPlanes) -> Tensor:
        """Multiply."""
        dense = rows.new_zeros(weight.out_features, weight.in_features)
        for place, k, signs in _signs(weight):
            a, c = _scales(rows, columns, place, k)
            dense[:, place.channels].addcmul_(signs.mul_(c), a[:, None])
        dense = dense.to(x.dtype)
        ctx.save_for_backward(x, rows, columns, dense)
        ctx.weight = weight
        return F.linear(x, dense)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """Return the gradients of x, a and c."""
        x, rows, columns, dense = ctx.saved_tensors
        y = grads[0].flatten(0, -2)
        slope = y.float().T @ x.flatten(0, -2).float()
        of_rows, of_columns = torch.empty_like(rows), torch.empty_like(columns)
        for place, k, signs in _signs(ctx.weight):
            a, c = _scales(rows, columns, place, k)
            signed = signs.mul_(slope[:, place.channels])
            of_a, of_c = _scales(of_rows, of_columns, place, k)
            of_a.copy_(signed @ c)
            of_c.copy_(a @ signed)
        return (y @ dense).view(x.shape), of_rows, of_columns, None


def _signs(weight: SignPlanes) -> Iterator[tuple[Place, int, Tensor]]:
    """Unpack the signs [out, block] of each plane k of each block, one at a time."""
    table = _signs_of_bytes(weight.planes.device)
    for place in weight.places():
        width = packed_width(place.width)
        data = weight.planes[:, place.first_byte :][:, : place.order * width]
        for k, plane in enumerate(data.split(width, dim=1)):
            signs = table.index_select(0, plane.flatten().int())
            yield place, k, signs.view(len(plane), -1)[:, : place.width]


@cache
def _signs_of_bytes(device: torch.device) -> Float[Tensor, "256 8"]:
    """Return the eight signs that every byte means."""
    byte = torch.arange(256, dtype=torch.uint8, device=device)
    return unpack(byte[:, None], 8).float() * 2 - 1


def _scales(rows: Tensor, columns: Tensor, place: Place, k: int) -> tuple[Tensor, Tensor]:
    """View what belongs to one plane of a block: a [out] and c [block]."""
    return rows[:, place.first_plane + k], columns[place.columns(k)]


class TunableLinear(nn.Module):
    """A binary layer whose scales are learned as relative changes of what is stored."""

    def __init__(self, layer: QuantLinear):
        super().__init__()
        weight = layer.weight
        assert isinstance(weight, SignPlanes), "binary planes have scales to tune"
        self.packed, self.bias = weight, layer.bias
        self.rows, self.columns = weight.row_scales.float(), weight.column_scales.float()
        self.row_change = nn.Parameter(torch.zeros_like(self.rows))
        self.column_change = nn.Parameter(torch.zeros_like(self.columns))

    def scales(self) -> tuple[Tensor, Tensor]:
        """Return a and c as they are now."""
        return self.rows * (1 + self.row_change), self.columns * (1 + self.column_change)

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """Multiply by the weight as it is now."""
        y = PlaneProduct.apply(x, *self.scales(), self.packed)
        return y if self.bias is None else y + self.bias

    def freeze(self) -> QuantLinear:
        """Return the layer that stores the scales as they are now, rounded as its kind stores."""
        rows, columns = (s.detach() for s in self.scales())
        return QuantLinear.of(self.packed.with_scales(rows, columns), self.bias)


def thaw(module: nn.Module) -> list[nn.Parameter]:
    """Make the scales of every binary layer under a module learnable; return what is learned."""
    learned = []
    for name, layer in list(module.named_modules()):
        if isinstance(layer, QuantLinear) and issubclass(layer.kind, SignPlanes):
            tunable = TunableLinear(layer)
            module.set_submodule(name, tunable)
            learned += [tunable.row_change, tunable.column_change]
    return learned


def freeze(module: nn.Module) -> None:
    """Undo `thaw`, keeping what was learned."""
    for name, layer in list(module.named_modules()):
        if isinstance(layer, TunableLinear):
            module.set_submodule(name, layer.freeze())
