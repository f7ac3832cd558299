"""Binary layers whose scales can be learned, while their planes stay packed.

Symbols:
    a  row scales, a column a plane    c  column scales, plane after plane    S  signs ±1
    Ŵ = Σ_k (a_k c_kᵀ) ∘ S_k           y = x Ŵᵀ                               D  slope of Ŵ
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from quant_dllm.linear import QuantLinear
from quant_dllm.weights.binary import SignPlanes
from quant_dllm.weights.packing import packed_width, unpack

TILE = 1 << 22  # weights whose planes are unpacked at once


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
        ctx.parts = list(_parts(weight))
        for part in ctx.parts:
            a, c = part.scales(rows, columns)
            for some in _tiles(weight):
                part.add(dense[some], part.signs(weight, some).mul_(c[:, None]), a[:, some, None])
        dense = dense.to(x.dtype)
        ctx.save_for_backward(x, rows, columns, dense)
        ctx.weight = weight
        return F.linear(x, dense)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """Return the gradients of x, a and c."""
        x, rows, columns, dense = ctx.saved_tensors
        y = grads[0].flatten(0, -2)
        slope = (y.T @ x.flatten(0, -2)).float()  # 16-bit numbers are summed in float32 as well
        of_rows, of_columns = torch.empty_like(rows), torch.empty_like(columns)
        for part in ctx.parts:
            a, c = part.scales(rows, columns)
            of_c = torch.zeros_like(c)
            for some in _tiles(ctx.weight):
                signed = part.signs(ctx.weight, some).mul_(part.by_block(slope[some]))
                of_a = (signed @ c[:, :, None])[:, :, 0]
                of_rows[some].index_copy_(1, part.planes + part.first_plane, of_a.T)
                of_c += (a[:, None, some] @ signed)[:, 0]
            part.by_plane(of_columns).index_copy_(0, part.planes, of_c)
        return (y @ dense).view(x.shape), of_rows, of_columns, None


@dataclass(frozen=True)
class Part:
    """The k-th planes of blocks of one width that stand beside each other.

    Attributes:
        channels: Of all blocks of that width: all of a weight's but a short last one.
        width: Of a block.
        blocks: Numbers of those among them that have a k-th plane.
        planes: Numbers of these planes among those of all of them.
        first_plane, first_byte, first_column: Where the planes, bytes and column scales begin.
        count: Planes of all of them.
        every: Whether all of them have a k-th plane.
    """

    channels: slice
    width: int
    blocks: Int[Tensor, " some"]
    planes: Int[Tensor, " some"]
    first_plane: int
    first_byte: int
    first_column: int
    count: int
    every: bool

    def by_block(self, dense: Float[Tensor, "out in"]) -> Float[Tensor, "some out width"]:
        """Look at a matrix's channels, those of one block after those of another."""
        blocks = dense[:, self.channels].unflatten(1, (-1, self.width)).transpose(0, 1)
        return blocks if self.every else blocks.index_select(0, self.blocks)

    def add(self, dense: Tensor, signed: Tensor, a: Tensor) -> None:
        """Add planes, whose signs are scaled by column, to a matrix [out, in]."""
        blocks = dense[:, self.channels].unflatten(1, (-1, self.width)).transpose(0, 1)
        if self.every:
            blocks.addcmul_(signed, a)
        else:
            blocks.index_add_(0, self.blocks, signed.mul_(a))

    def by_plane(self, columns: Float[Tensor, " columns"]) -> Float[Tensor, "planes width"]:
        """View the column scales plane by plane."""
        return columns[self.first_column :][: self.count * self.width].view(-1, self.width)

    def scales(self, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Return a [some, out] and c [some, width]."""
        a = rows.index_select(1, self.planes + self.first_plane).T.contiguous()
        return a, self.by_plane(columns).index_select(0, self.planes)

    def signs(self, weight: SignPlanes, some: slice) -> Float[Tensor, "some rows width"]:
        """Unpack the planes of some rows."""
        size = packed_width(self.width)
        data = weight.planes[some, self.first_byte :][:, : self.count * size]
        mine = data.unflatten(1, (-1, size)).transpose(0, 1).index_select(0, self.planes)
        signs = _signs_of_bytes(data.device).index_select(0, mine.flatten().int())
        return signs.view(len(mine), len(data), -1)[:, :, : self.width]


def _parts(weight: SignPlanes) -> Iterator[Part]:
    """Take plane after plane of all blocks together: few large steps, each block in its order."""
    for width, places in groupby(weight.places(), key=lambda place: place.width):
        run = list(places)
        first, device = run[0], weight.planes.device
        channels = slice(first.channels.start, run[-1].channels.stop)
        for k in range(max(place.order for place in run)):
            has = [i for i, place in enumerate(run) if place.order > k]
            planes = [run[i].first_plane - first.first_plane + k for i in has]
            yield Part(
                channels, width, torch.tensor(has, device=device),
                torch.tensor(planes, device=device), first.first_plane, first.first_byte,
                first.first_column, sum(place.order for place in run), len(has) == len(run),
            )  # fmt: skip


def _tiles(weight: SignPlanes) -> Iterator[slice]:
    """Cut the rows, so that little is unpacked at once."""
    rows = max(1, TILE // weight.in_features)
    for start in range(0, weight.out_features, rows):
        yield slice(start, start + rows)


@cache
def _signs_of_bytes(device: torch.device) -> Float[Tensor, "256 8"]:
    """Return the eight signs that every byte means."""
    byte = torch.arange(256, dtype=torch.uint8, device=device)
    return unpack(byte[:, None], 8).float() * 2 - 1


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
