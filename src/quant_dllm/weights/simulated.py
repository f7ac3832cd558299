"""Rounded values in 16-bit floats, with the bits that the method would store."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Float16
from torch import Tensor


@dataclass(frozen=True)
class Part:
    """One rounded block.

    Attributes:
        code_bits: Bits that all its codes would take.
        stored_bits: Bits that all that is stored of it would take.
    """

    values: Float[Tensor, "out block"]
    code_bits: int
    stored_bits: int


@dataclass(frozen=True)
class SimulatedWeight:
    """A weight of a method that nobody packs.

    Attributes:
        values: Rounded values; on disk they are float16, and not counted as such.
        code_bits: Bits a weight that the method's codes would take.
        stored_bits: Bits a weight that all the method stores would take.
    """

    values: Float16[Tensor, "out in"]
    code_bits: float
    stored_bits: float
    kind: ClassVar[str] = "simulated"
    names: ClassVar[tuple[str, ...]] = ("values",)

    @classmethod
    def of(cls, parts: Sequence[Part]) -> "SimulatedWeight":
        """Lay blocks side by side."""
        values = torch.cat([part.values for part in parts], dim=1).half()
        return cls(
            values,
            sum(part.code_bits for part in parts) / values.numel(),
            sum(part.stored_bits for part in parts) / values.numel(),
        )

    @property
    def out_features(self) -> int:
        """Count the output channels."""
        return self.values.shape[0]

    @property
    def in_features(self) -> int:
        """Count the input channels."""
        return self.values.shape[1]

    def tensors(self) -> dict[str, Tensor]:
        """Name the stored tensors."""
        return {"values": self.values}

    def layout(self) -> dict[str, Any]:
        """Describe what the tensors do not tell."""
        return {"code_bits": self.code_bits, "stored_bits": self.stored_bits}

    def scale_rows(self, s: Float[Tensor, " out"]) -> "SimulatedWeight":
        """Multiply the output channels; the method's row scales would carry it."""
        return replace(self, values=(self.values.float() * s[:, None]).half())

    def dequantize(self, rows: slice = slice(None)) -> Float[Tensor, "some in"]:
        """Return the values."""
        return self.values[rows].float()
