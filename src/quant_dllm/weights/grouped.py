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
        inputs = codes.shape[1]
        if bits == 4:
            low, high = (
                torch.nn.functional.pad(codes, (0, inputs % 2)).unflatten(1, (-1, 2)).unbind(2)
            )
            codes = low | high << 4
        return cls(codes, scales.half(), bits, block_size, inputs)

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
        """Count codes and scales, in bits a weight."""
        stored = self.codes.nbytes + self.scales.nbytes
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
        codes, scales = self.codes[rows], self.scales[rows].float()
        if self.bits == 4:
            codes = torch.stack((codes & 15, codes >> 4), dim=2).flatten(1)
        values = codes[:, : self.in_features].float().sub_(2 ** (self.bits - 1))
        whole = self.in_features // self.block_size
        groups = values[:, : whole * self.block_size].unflatten(1, (whole, self.block_size))
        groups.mul_(scales[:, :whole, None])  # a view
        values[:, whole * self.block_size :].mul_(scales[:, whole:])
        return values
