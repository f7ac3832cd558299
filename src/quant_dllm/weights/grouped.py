"""Codes of four or eight bits in groups, in whole bytes: what embedding and head are stored as.

Ŵ[i, j] = scale[i, g] · (code[i, j] − 2^(bits − 1)),    g the group of j

A scale may be negative: the code zero, which lies farther out than the highest, then stands on the
side of the group's largest value.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Float16, UInt8
from torch import Tensor


@dataclass(frozen=True)
class GroupedWeight:
    """Rows of codes, and a scale for each group of a row.

    Attributes:
        codes: A byte a code of eight bits, or two of four bits: the lower half is the channel
            before.
        scales: Of the groups.
        bits: Of a code, 4 or 8.
        block_size: Input channels of a group; the last one may be shorter.
    """

    codes: UInt8[Tensor, "out bytes"]
    scales: Float16[Tensor, "out groups"]
    bits: int
    block_size: int
    in_features: int
    kind: ClassVar[str] = "grouped"
    names: ClassVar[tuple[str, ...]] = ("codes", "scales")

    @classmethod
    def of(
        cls, codes: UInt8[Tensor, "out in"], scales: Tensor, bits: int, block_size: int
    ) -> "GroupedWeight":
        """Pack codes below ``2^bits``."""
        stored = halves(codes) if bits == 4 else codes
        return cls(stored, scales.half(), bits, block_size, codes.shape[1])

    @property
    def out_features(self) -> int:
        """Count the output channels."""
        return self.codes.shape[0]

    @property
    def code_bits(self) -> float:
        """Bits of a code."""
        return float(self.bits)

    @property
    def stored_bits(self) -> float:
        """Count all that is stored, in bits a weight."""
        stored = sum(tensor.nbytes for tensor in self.tensors().values())
        return 8 * stored / (self.out_features * self.in_features)

    def tensors(self) -> dict[str, Tensor]:
        """Name the stored tensors."""
        return {name: getattr(self, name) for name in self.names}

    def layout(self) -> dict[str, Any]:
        """Describe what the tensors do not tell."""
        names = ("bits", "block_size", "in_features")
        return {name: getattr(self, name) for name in names}

    def scale_rows(self, s: Float[Tensor, " out"]) -> "GroupedWeight":
        """Multiply the output channels; the groups' scales carry it."""
        return replace(self, scales=(self.scales.float() * s[:, None]).half())

    def dequantize(self, rows: slice | Tensor = slice(None)) -> Float[Tensor, "some in"]:
        """Scale the codes of these rows, which may be given by their numbers."""
        values, scales = self._levels(rows), self.scales[rows].float()
        count = self.in_features // self.block_size
        groups = values[:, : count * self.block_size].unflatten(1, (count, self.block_size))
        groups.mul_(scales[:, :count, None])  # a view
        values[:, count * self.block_size :].mul_(scales[:, count:])
        return values

    def _levels(self, rows: slice | Tensor) -> Float[Tensor, "some in"]:
        """Return the codes of some rows as distances from their middle."""
        codes = whole(self.codes[rows]) if self.bits == 4 else self.codes[rows]
        return codes[:, : self.in_features].float().sub_(2 ** (self.bits - 1))


def halves(codes: UInt8[Tensor, "rows in"]) -> UInt8[Tensor, "rows bytes"]:
    """Put two codes of four bits into a byte, the first into its lower half."""
    odd = codes.shape[1] % 2
    low, high = torch.nn.functional.pad(codes, (0, odd)).unflatten(1, (-1, 2)).unbind(2)
    return low | high << 4


def whole(stored: UInt8[Tensor, "rows bytes"]) -> UInt8[Tensor, "rows codes"]:
    """Take bytes apart into codes of four bits; the last one may be no code."""
    return torch.stack((stored & 15, stored >> 4), dim=2).flatten(1)
