"""Bits in bytes, and blocks in rows: the definition of the file's layout.

A row of bits is packed into bytes from the lowest bit up: bit ``j`` of the row is bit ``j mod 8``
of byte ``j div 8``; a row whose length 8 does not divide ends in zero bits. A matrix keeps a row of
bytes for each output channel: block after block of input channels, within a block plane after
plane, each on whole bytes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int, UInt8
from torch import Tensor


@dataclass(frozen=True)
class Place:
    """Where one block lies.

    Attributes:
        channels: Its input channels.
        order: Its planes, which are its bits.
        first_plane: Planes of the blocks before it.
        first_byte: Bytes of a row before it.
        first_column: Channels of the blocks before it, each counted once a plane.
    """

    channels: slice
    order: int
    first_plane: int
    first_byte: int
    first_column: int

    @property
    def width(self) -> int:
        """Count the block's input channels."""
        return self.channels.stop - self.channels.start

    def columns(self, k: int) -> slice:
        """Locate the column scales of one of its planes."""
        start = self.first_column + k * self.width
        return slice(start, start + self.width)


def places(in_features: int, block_size: int, orders: Sequence[int]) -> Iterator[Place]:
    """Walk over the blocks of a matrix; the last one may be short."""
    plane = byte = column = 0
    for b, order in enumerate(orders):
        start = b * block_size
        place = Place(
            slice(start, min(start + block_size, in_features)), order, plane, byte, column
        )
        yield place
        plane += order
        byte += order * packed_width(place.width)
        column += order * place.width


def packed_width(bits: int) -> int:
    """Count the bytes that hold a row of ``bits`` bits."""
    return -(-bits // 8)


def pack(bits: Bool[Tensor, "*rows bits"]) -> UInt8[Tensor, "*rows bytes"]:
    """Pack the last axis, eight bits a byte."""
    width = bits.shape[-1]
    padded = torch.nn.functional.pad(bits.to(torch.uint8), (0, packed_width(width) * 8 - width))
    powers = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=bits.device)
    return (padded.unflatten(-1, (-1, 8)) * powers).sum(-1, dtype=torch.uint8)


def unpack(data: UInt8[Tensor, "*rows bytes"], width: int) -> Bool[Tensor, "*rows bits"]:
    """Undo `pack` for rows of ``width`` bits."""
    byte = torch.arange(256, device=data.device)[:, None]
    table = (byte >> torch.arange(8, device=data.device) & 1).bool()
    return table[data.int()].flatten(-2)[..., :width]


def bit_planes(codes: Int[Tensor, "*rows width"], bits: int) -> Bool[Tensor, "*rows plane width"]:
    """Split codes below ``2^bits`` into their bits, the lowest first."""
    plane = torch.arange(bits, device=codes.device)
    return (codes[..., None, :] >> plane[:, None] & 1).bool()


def from_bit_planes(planes: Bool[Tensor, "*rows plane width"]) -> Int[Tensor, "*rows width"]:
    """Undo `bit_planes`."""
    plane = torch.arange(planes.shape[-2], device=planes.device)
    return (planes.int() << plane[:, None]).sum(-2, dtype=torch.int32)
