"""Codes of four bits in groups, and of eight in the rows of the commonest tokens.

    Ŵ[i, j] = scale[i, g] · (code[i, j] − 8 + below[i, j] / 16)

g is the group of j; `below` is zero but in the finer rows.

Text is mostly made of few tokens, and half of what a denoiser reads is one, the mask. What rounding
does to their rows of the embedding is done to most of the input; what it does to their rows of the
head, to most of the probability.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int, Int32, UInt8
from torch import Tensor

from quant_dllm.weights.grouped import GroupedWeight, halves, whole
from quant_dllm.weights.packing import pack, unpack


@dataclass(frozen=True)
class FinerWeight(GroupedWeight):
    """Rows of codes of four bits; some rows have four bits more, below those.

    Attributes:
        marks: A bit a row, packed: whether it is one of the finer rows.
        below: Their lower four bits, row after row, two a byte, as the upper ones lie in ``codes``.
    """

    marks: UInt8[Tensor, " packed_out"]
    below: UInt8[Tensor, "finer bytes"]
    kind: ClassVar[str] = "finer"
    names: ClassVar[tuple[str, ...]] = ("codes", "scales", "marks", "below")

    @classmethod
    def split(
        cls,
        codes: UInt8[Tensor, "out in"],
        scales: Tensor,
        finer: Bool[Tensor, " out"],
        block_size: int,
    ) -> "FinerWeight":
        """Pack codes below 16, of the finer rows below 256.

        Args:
            codes: Of all rows.
            scales: Distances [out, groups] of two levels of four bits.
            finer: Which rows are finer; at least one is.
            block_size: Channels of a group.
        """
        upper = torch.where(finer[:, None], codes >> 4, codes)
        below = halves(codes[finer] & 15)
        marks = pack(finer[None])[0]
        return cls(halves(upper), scales.half(), 4, block_size, codes.shape[1], marks, below)

    @property
    def code_bits(self) -> float:
        """Bits of a code, on average."""
        return 4 + 4 * len(self.below) / self.out_features

    @cached_property
    def _finer(self) -> Bool[Tensor, " out"]:
        return unpack(self.marks[None], self.out_features)[0]

    @cached_property
    def _rank(self) -> Int[Tensor, " out"]:
        """Tell where the lower bits of each finer row are."""
        return self._finer.cumsum(0).sub_(1).clamp_(min=0)

    @cached_property
    def ranks(self) -> Int32[Tensor, " out"]:
        """Tell where the lower bits of each row are; −1 where there are none."""
        return torch.where(self._finer, self._rank, -1).int()

    def _levels(self, rows: slice | Tensor) -> Float[Tensor, "some in"]:
        levels, finer, rank = super()._levels(rows), self._finer[rows], self._rank[rows]
        if isinstance(rows, slice):  # many rows, few of them finer
            here = finer.nonzero()[:, 0]
            return levels.index_add_(0, here, self._below(rank[here]))
        return levels.add_(torch.where(finer[:, None], self._below(rank), 0.0))

    def _below(self, rank: Int[Tensor, " some"]) -> Float[Tensor, "some in"]:
        """Return what the lower bits of some finer rows add."""
        return whole(self.below[rank])[:, : self.in_features].float().div_(16)
