"""Binary layers whose scales can be learned, while their planes stay packed.

Symbols:
    a  row scales, a column a plane    c  column scales, plane after plane    S  signs ±1
    Ŵ = Σ_k (a_k c_kᵀ) ∘ S_k           y = x Ŵᵀ
"""

from collections.abc import Iterator
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

    Only its arguments are kept for the backward pass: Ŵ is made again there, so that a network
    under tuning holds no more of its weights than one that runs.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor, columns: Tensor, weight: SignPlanes) -> Tensor:
        """Multiply."""
        ctx.save_for_backward(x, rows, columns)
        ctx.weight = weight
        values = [_values(rows, columns, p, s) for p, s in _signs(weight)]
        return F.linear(x, torch.cat(values, dim=1).to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """Return the gradients of x, a and c."""
        x, rows, columns = ctx.saved_tensors
        y = grads[0].flatten(0, -2)
        slope = y.float().T @ x.flatten(0, -2).float()  # of Ŵ
        of_rows, of_columns, values = torch.empty_like(rows), torch.empty_like(columns), []
        for place, signs in _signs(ctx.weight):
            a, c = _scales(rows, columns, place)
            values.append(_values(rows, columns, place, signs))
            signed = slope[:, place.channels] * signs
            planes = slice(place.first_plane, place.first_plane + place.order)
            of_rows[:, planes] = torch.einsum("kob,kb->ok", signed, c)
            run = slice(place.first_column, place.first_column + place.order * place.width)
            of_columns[run] = torch.einsum("kob,ko->kb", signed, a).flatten()
        of_x = (y @ torch.cat(values, dim=1).to(y.dtype)).view(x.shape)
        return of_x, of_rows, of_columns, None


def _signs(weight: SignPlanes) -> Iterator[tuple[Place, Tensor]]:
    """Unpack the signs [order, out, block] of each block, one at a time."""
    for place in weight.places():
        data = weight.planes[:, place.first_byte :][:, : place.order * packed_width(place.width)]
        bits = unpack(data.unflatten(1, (place.order, -1)), place.width).transpose(0, 1)
        yield place, bits.to(torch.float32).mul_(2).sub_(1)


def _scales(rows: Tensor, columns: Tensor, place: Place) -> tuple[Tensor, Tensor]:
    a = rows[:, place.first_plane :][:, : place.order].T
    c = columns[place.first_column :][: place.order * place.width].view(place.order, place.width)
    return a, c


def _values(rows: Tensor, columns: Tensor, place: Place, signs: Tensor) -> Tensor:
    a, c = _scales(rows, columns, place)
    return torch.einsum("ko,kb,kob->ob", a, c, signs)


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
