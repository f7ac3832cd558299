"""Evenly spaced levels, with a scale and a zero point for each group: what RTN and GPTQ write.

Ŵ[i, j] = scale[i, g] · (code[i, j] − zero_point[i, g]),    g the group of j

`UniformWeight` stores a zero point as a code, `weights.affine.AffineWeight` as a float16.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

import torch
from jaxtyping import Float, Float16, Int, Real, UInt8
from torch import Tensor

from quant_dllm.weights.packing import (
    Place,
    bit_planes,
    from_bit_planes,
    pack,
    packed_width,
    places,
    unpack,
)

L = TypeVar("L", bound="Levels")


@dataclass(frozen=True)
class Group:
    """One group of input channels before it is packed: codes below ``2^bits`` and their grid."""

    codes: Int[Tensor, "out group"]
    scale: Float[Tensor, " out"]
    zero_point: Real[Tensor, " out"]
    bits: int


@dataclass(frozen=True)
class Levels:
    """Groups side by side, packed: all but how their zero points are stored.

    Attributes:
        planes: Bits of the codes, the lowest plane first, laid out as `packing` defines.
        scales: Distance of two levels.
        zero_points: Where zero lies among the codes.
        bits: Bits of each group's codes.
        block_size: Input channels of a group; the last one may be shorter.
    """

    planes: UInt8[Tensor, "out bytes"]
    scales: Float16[Tensor, "out groups"]
    zero_points: Tensor
    bits: UInt8[Tensor, " groups"]
    block_size: int
    in_features: int
    names: ClassVar[tuple[str, ...]] = ("planes", "scales", "zero_points", "bits")

    @classmethod
    def of(cls: type[L], groups: Sequence[Group], block_size: int) -> L:
        """Pack coded groups."""
        device = groups[0].codes.device
        return cls(
            planes=torch.cat([pack(bit_planes(g.codes, g.bits)).flatten(1) for g in groups], dim=1),
            scales=torch.stack([g.scale for g in groups], dim=1).half(),
            zero_points=cls.pack_zero_points(groups),
            bits=torch.tensor([g.bits for g in groups], dtype=torch.uint8, device=device),
            block_size=block_size,
            in_features=sum(g.codes.shape[1] for g in groups),
        )

    @staticmethod
    def pack_zero_points(groups: Sequence[Group]) -> Tensor:
        """Return what is stored of the groups' zero points."""
        raise NotImplementedError

    def zero_point(self, index: int, place: Place, rows: slice) -> Float[Tensor, " some"]:
        """Return the zero point of each of these rows in one group."""
        raise NotImplementedError

    @property
    def out_features(self) -> int:
        """Count the output channels."""
        return self.planes.shape[0]

    @property
    def code_bits(self) -> float:
        """Average bits of an input channel's codes."""
        return sum(p.order * p.width for p in self.places()) / self.in_features

    @property
    def stored_bits(self) -> float:
        """Count codes, scales and zero points, in bits a weight."""
        stored = sum(tensor.nbytes for tensor in self.tensors().values())
        return 8 * stored / (self.out_features * self.in_features)

    def tensors(self) -> dict[str, Tensor]:
        """Name the stored tensors."""
        return {name: getattr(self, name) for name in self.names}

    def layout(self) -> dict[str, Any]:
        """Describe what the tensors do not tell."""
        return {"block_size": self.block_size, "in_features": self.in_features}

    def places(self) -> Iterator[Place]:
        """Walk over the groups."""
        return places(self.in_features, self.block_size, self.bits.tolist())

    def group(self, index: int, place: Place, rows: slice) -> Float[Tensor, "some group"]:
        """Return the values of one group in these rows."""
        bits, width = place.order, place.width
        data = self.planes[rows, place.first_byte :][:, : bits * packed_width(width)]
        codes = from_bit_planes(unpack(data.unflatten(1, (bits, -1)), width))
        zero = self.zero_point(index, place, rows)
        return self.scales[rows, index, None].float() * (codes - zero[:, None])

    def scale_rows(self: L, s: Float[Tensor, " out"]) -> L:
        """Multiply the output channels; the groups' scales carry it."""
        return replace(self, scales=(self.scales.float() * s[:, None]).half())

    def dequantize(self, rows: slice = slice(None)) -> Float[Tensor, "some in"]:
        """Scale the distance of each code from its zero point."""
        parts = [self.group(i, place, rows) for i, place in enumerate(self.places())]
        return torch.cat(parts, dim=1)


@dataclass(frozen=True)
class UniformWeight(Levels):
    """Levels of which one is zero.

    Attributes:
        zero_points: Codes that stand for zero, as bit planes packed along the outputs.
    """

    zero_points: UInt8[Tensor, "planes packed"]
    kind: ClassVar[str] = "uniform"

    @staticmethod
    def pack_zero_points(groups: Sequence[Group]) -> UInt8[Tensor, "planes packed"]:
        """Return the zero points' bit planes."""
        return torch.cat([pack(bit_planes(g.zero_point.int(), g.bits)) for g in groups])

    def zero_point(self, index: int, place: Place, rows: slice) -> Float[Tensor, " some"]:
        """Unpack the zero points of one group."""
        planes = unpack(self.zero_points[place.first_plane :][: place.order], self.out_features)
        return from_bit_planes(planes)[rows].float()
