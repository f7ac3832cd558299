"""A binary weight in the order in which the GPU reads it, and the way back to the file's.

A word holds the signs of 32 neighbouring channels of a row, set where −1. Channel ``2s`` is bit
``15 - s`` and channel ``2s + 1`` bit ``31 - s``: shifted left by ``s``, the word has both where two
16-bit floats keep their signs.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int32, UInt8
from torch import Tensor

from quant_dllm.kernels.operator import OPERATOR
from quant_dllm.weights.binary import BinaryWeight, SignPlanes
from quant_dllm.weights.packing import pack, packed_width, unpack

WORD = 32


@dataclass(frozen=True)
class TritonWeight:
    """A binary weight in the order in which the GPU reads it: blocks of low order first.

    Attributes:
        words: Signs, see above.
        rows: Row scales [planes, out].
        columns: Column scales [planes, block], zero behind a short block.
        groups: The block of each plane.
        counts: Blocks of each order, from 0 to the highest.
        orders: As in `BinaryWeight`.
        blocks_of_order: `counts`, where the host can read it.
    """

    words: Tensor
    rows: Tensor
    columns: Tensor
    groups: Tensor
    counts: Tensor
    orders: Tensor
    blocks_of_order: tuple[int, ...]
    in_features: int

    @classmethod
    def of(cls, weight: SignPlanes) -> "TritonWeight":
        """Bring a weight into this order, on its device."""
        device, orders = weight.planes.device, weight.orders.long()
        columns = []
        for place in weight.places():
            size = place.order * place.width
            some = weight.column_scales[place.first_column :][:size].view(place.order, place.width)
            columns.append(F.pad(some, (0, weight.block_size - place.width)))
        groups = torch.arange(len(orders), device=device, dtype=torch.int32)
        groups = groups.repeat_interleave(orders)
        place_of_plane = orders[groups.long()].argsort(stable=True)
        counts = orders.bincount().to(torch.int32)
        return cls(
            words=to_words(weight)[place_of_plane],
            rows=weight.row_scales.T[place_of_plane].contiguous(),
            columns=torch.cat(columns)[place_of_plane],
            groups=groups[place_of_plane],
            counts=counts,
            orders=weight.orders,
            blocks_of_order=tuple(counts.tolist()),
            in_features=weight.in_features,
        )

    @property
    def out_features(self) -> int:
        """Count the output channels."""
        return self.words.shape[2]

    @property
    def block_size(self) -> int:
        """Count the channels of a block."""
        return self.columns.shape[1]

    @property
    def nbytes(self) -> int:
        """Count the bytes that it holds."""
        return sum(tensor.nbytes for tensor in (*self.tensors(), self.orders))

    def tensors(self) -> list[Tensor]:
        """List what the programs read."""
        return [self.words, self.rows, self.columns, self.groups, self.counts]

    def facts(self) -> list[int]:
        """List the numbers that the operator wants beside them."""
        return [self.out_features, *self.blocks_of_order]

    def refuses(self, x: Tensor) -> str | None:
        """Say why a call cannot be taken; the weight is known to be fit."""
        return refuses_input(x)

    def linear(
        self, x: Float[Tensor, "*batch in"], bias: Float[Tensor, " out"] | None = None
    ) -> Float[Tensor, "*batch out"]:
        """Compute ``x Ŵᵀ + bias``."""
        return OPERATOR(x, self.tensors(), bias, self.facts())

    def restore(self) -> BinaryWeight:
        """Return the weight in the neutral layout, bit for bit."""
        orders, block = self.orders.tolist(), self.block_size
        back = self.groups.argsort(stable=True)
        padded, columns, at = self.columns[back], [], 0
        for b, order in enumerate(orders):
            width = min(block, self.in_features - b * block)
            columns.append(padded[at : at + order, :width].flatten())
            at += order
        return BinaryWeight(
            planes=from_words(self.words[back], orders, self.in_features, block),
            row_scales=self.rows[back].T.contiguous(),
            column_scales=torch.cat(columns),
            orders=self.orders,
            block_size=block,
            in_features=self.in_features,
        )


def refuses_input(x: Tensor) -> str | None:
    """Say why a call cannot be taken."""
    if x.device.type != "cuda":
        return f"the input is on {x.device}"
    if x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"the input is {x.dtype}"
    if x.requires_grad and torch.is_grad_enabled():
        return "gradients of the input are asked for"
    return None


def bit_of_channel(device: torch.device) -> Tensor:
    """Return the bit at which each of 32 channels stands."""
    channel = torch.arange(WORD, device=device)
    return 15 - channel // 2 + 16 * (channel % 2)


def to_words(weight: SignPlanes) -> Int32[Tensor, "planes words out"]:
    """Bring the signs of all planes into words; what pads a short block is a zero bit."""
    shift = bit_of_channel(weight.planes.device)
    words = []
    for place in weight.places():
        size = place.order * packed_width(place.width)
        data = weight.planes[:, place.first_byte :][:, :size].unflatten(1, (place.order, -1))
        minus = ~unpack(data, place.width)
        minus = F.pad(minus, (0, weight.block_size - place.width))
        grouped = minus.unflatten(-1, (-1, WORD)).long() << shift
        words.append(grouped.sum(-1).permute(1, 2, 0).to(torch.int32))
    return torch.cat(words).contiguous()


def from_words(
    words: Int32[Tensor, "planes words out"], orders: list[int], in_features: int, block_size: int
) -> UInt8[Tensor, "out bytes"]:
    """Undo `to_words`."""
    shift = bit_of_channel(words.device)
    blocks, at = [], 0
    for b, order in enumerate(orders):
        width = min(block_size, in_features - b * block_size)
        some = words[at : at + order].permute(2, 0, 1)[..., None] >> shift & 1
        blocks.append(pack(some.flatten(-2)[..., :width] == 0).flatten(1))
        at += order
    return torch.cat(blocks, dim=1)
