"""Evenly spaced levels of which none need be zero: what HQQ writes.

Ŵ[i, j] = scale[i, g] · (code[i, j] − zero_point[i, g]),    g the group of j
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Float16
from torch import Tensor

from quant_dllm.weights.packing import Place
from quant_dllm.weights.uniform import Group, Levels


@dataclass(frozen=True)
class AffineWeight(Levels):
    """Levels anywhere.

    Attributes:
        zero_points: Where zero lies among the codes, between two of them or outside.
    """

    zero_points: Float16[Tensor, "out groups"]
    kind: ClassVar[str] = "affine"

    @staticmethod
    def pack_zero_points(groups: Sequence[Group]) -> Float16[Tensor, "out groups"]:
        """Round the zero points to float16."""
        return torch.stack([g.zero_point for g in groups], dim=1).half()

    def zero_point(self, index: int, place: Place, rows: slice) -> Float[Tensor, " some"]:
        """Return a column of the zero points."""
        return self.zero_points[rows, index].float()
