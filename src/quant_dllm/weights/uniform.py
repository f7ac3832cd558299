"""Evenly spaced levels, with a scale and a zero point for each group: what RTN and GPTQ write.

Ŵ[i, j] = scale[i, g] · (code[i, j] − zero_point[i, g]),    g the group of j
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Float16, Int, UInt8
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


@dataclass(frozen=True)
class Group:
    """One group of input channels before it is packed: codes below ``2^bits`` and their grid."""

    codes: Int[Tensor, "out group"]
    scale: Float[Tensor, " out"]
    zero_point: Int[Tensor, " out"]
    bits: int


@dataclass(frozen=True)
class UniformWeight:
    """Groups side by side, packed.

    Attributes:
        planes: Bits of the codes, the lowest plane first, laid out as `packing` defines.
        scales: Distance of two levels.
        zero_points: Codes that stand for zero, as bit planes packed along the outputs.
        bits: Bits of each group's codes.
        block_size: Input channels of a group; the last one may be shorter.
    """

    planes: UInt8[Tensor, "out bytes"]
    scales: Float16[Tensor, "out groups"]
    zero_points: UInt8[Tensor, "planes packed"]
    bits: UInt8[Tensor, " groups"]
    block_size: int
    in_features: int
    kind: ClassVar[str] = "uniform"
    names: ClassVar[tuple[str, ...]] = ("planes", "scales", "zero_points", "bits")

    @classmethod
    def of(cls, groups: Sequence[Group], block_size: int) -> "UniformWeight":
        """Pack coded groups."""
        device = groups[0].codes.device
        return cls(
            planes=torch.cat([pack(bit_planes(g.codes, g.bits)).flatten(1) for g in groups], dim=1),
            scales=torch.stack([g.scale for g in groups], dim=1).half(),
            zero_points=torch.cat([pack(bit_planes(g.zero_point, g.bits)) for g in groups]),
            bits=torch.tensor([g.bits for g in groups], dtype=torch.uint8, device=device),
            block_size=block_size,
            in_features=sum(g.codes.shape[1] for g in groups),
        )

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
        zero_planes = unpack(self.zero_points[place.first_plane :][:bits], self.out_features)
        zero = from_bit_planes(zero_planes)[rows]
        return self.scales[rows, index, None].float() * (codes - zero[:, None])

    def scale_rows(self, s: Float[Tensor, " out"]) -> "UniformWeight":
        """Multiply the output channels; the groups' scales carry it."""
        return replace(self, scales=(self.scales.float() * s[:, None]).half())

    def dequantize(self, rows: slice = slice(None)) -> Float[Tensor, "some in"]:
        """Scale the distance of each code from its zero point."""
        parts = [self.group(i, place, rows) for i, place in enumerate(self.places())]
        return torch.cat(parts, dim=1)
