"""Sums of binary planes under scales of a few bits: what DAQ writes where bytes count.

    Ŵ[i, j] = Σ_k a_k[i] · c_k[j] · B_k[i, j],    a = (low + step · code)²,    c likewise

Row scales are spread over several powers of two, and few are large: evenly spaced square roots lose
least of the output at equal bits (measured against even spacing and fourth roots). Each plane of
each block has a grid of its own for its row scales, and one for its column scales.

Symbols:
    a  row scales    c  column scales    B  signs    k  plane
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Float16, Int, UInt8
from torch import Tensor

from quant_dllm.weights.binary import Planes, SignPlanes
from quant_dllm.weights.packing import bit_planes, from_bit_planes, pack, packed_width, unpack

FEWEST, MOST = 4, 8  # bits of a code


@dataclass(frozen=True)
class Grid:
    """Values whose square roots are evenly spaced.

    Attributes:
        low: Root of the least value.
        step: Distance of two roots.
        bits: Of a code.
    """

    low: Float16[Tensor, ""]
    step: Float16[Tensor, ""]
    bits: int

    @classmethod
    def fit(cls, scales: Float[Tensor, " n"], bits: int) -> "Grid":
        """Span from the least to the greatest of some scales, none of which is negative."""
        low, high = scales.clamp_min(0).sqrt().aminmax()
        low = low.half()
        return cls(low, ((high - low.float()) / (2**bits - 1)).half(), bits)

    def codes(self, scales: Float[Tensor, " n"]) -> Int[Tensor, " n"]:
        """Return the code of the nearest root; a grid of one point has only the code zero."""
        step = torch.where(self.step == 0, torch.inf, self.step.float())
        roots = (scales.clamp_min(0).sqrt() - self.low.float()) / step
        return roots.round().clamp(0, 2**self.bits - 1).int()

    def values(self, codes: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Return the scales that codes stand for, as `CompactWeight` rounds them."""
        return expand(codes, self.low, self.step).float()


def expand(codes: Int[Tensor, "*n"], low: Tensor, step: Tensor) -> Float16[Tensor, "*n"]:
    """Square evenly spaced roots; the product is rounded to float16, as kernels store it."""
    return (low.float() + step.float() * codes).square().half()


@dataclass(frozen=True)
class CompactWeight(SignPlanes):
    """Blocks side by side, packed, under coded scales; see `SignPlanes`.

    Attributes:
        row_codes: Codes of the row scales, as bit planes packed along the outputs: plane after
            plane, of each the lowest bit first.
        column_codes: Codes of all column scales, as bit planes, the lowest bit first.
        row_grids, column_grids: Low and step of each plane's grid.
        scale_bits: Bits of a code.
    """

    planes: UInt8[Tensor, "out bytes"]
    row_codes: UInt8[Tensor, "rows packed"]
    column_codes: UInt8[Tensor, "scale_bits packed_columns"]
    row_grids: Float16[Tensor, "2 planes"]
    column_grids: Float16[Tensor, "2 planes"]
    orders: UInt8[Tensor, " blocks"]
    scale_bits: int
    block_size: int
    in_features: int
    kind: ClassVar[str] = "compact"
    names: ClassVar[tuple[str, ...]] = (
        "planes", "row_codes", "column_codes", "row_grids", "column_grids", "orders",
    )  # fmt: skip

    @classmethod
    def of(cls, blocks: Sequence[Planes], block_size: int, scale_bits: int) -> "CompactWeight":
        """Pack fitted blocks; each scale takes the nearest value of its plane's grid."""
        blocks = [positive(block) for block in blocks]
        rows = [plane for block in blocks for plane in block.rows]
        row_grids = [Grid.fit(plane, scale_bits) for plane in rows]
        row_codes = [grid.codes(plane) for grid, plane in zip(row_grids, rows, strict=True)]
        columns = [plane for block in blocks for plane in block.columns]
        column_grids = [Grid.fit(plane, scale_bits) for plane in columns]
        codes = [grid.codes(plane) for grid, plane in zip(column_grids, columns, strict=True)]
        return cls.coded(blocks, block_size, (row_codes, row_grids), (codes, column_grids))

    @classmethod
    def coded(
        cls,
        blocks: Sequence[Planes],
        block_size: int,
        rows: tuple[Sequence[Tensor], Sequence[Grid]],
        columns: tuple[Sequence[Tensor], Sequence[Grid]],
    ) -> "CompactWeight":
        """Pack blocks whose scales are coded already.

        Args:
            blocks: Their signs count.
            block_size: Input channels of a block.
            rows: Codes [out] and grid of each plane's row scales.
            columns: Codes [block] and grid of each plane's column scales.
        """
        bits, device = rows[1][0].bits, blocks[0].signs.device
        return cls(
            planes=torch.cat([pack(plane) for block in blocks for plane in block.signs], dim=1),
            row_codes=pack(bit_planes(torch.stack(list(rows[0])), bits)).flatten(0, 1),
            column_codes=pack(bit_planes(torch.cat(list(columns[0])), bits)),
            row_grids=_table(rows[1]),
            column_grids=_table(columns[1]),
            orders=torch.tensor([len(b.signs) for b in blocks], dtype=torch.uint8, device=device),
            scale_bits=bits,
            block_size=block_size,
            in_features=sum(block.signs.shape[-1] for block in blocks),
        )

    def layout(self) -> dict[str, Any]:
        """Describe what the tensors do not tell."""
        return super().layout() | {"scale_bits": self.scale_bits}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Tell which shapes the orders want the tensors to have."""
        found, bits = list(self.places()), self.scale_bits
        planes, columns = sum(p.order for p in found), sum(p.order * p.width for p in found)
        return super().shapes() | {
            "row_codes": (planes * bits, packed_width(self.out_features)),
            "column_codes": (bits, packed_width(columns)),
            "row_grids": (2, planes),
            "column_grids": (2, planes),
        }

    @cached_property
    def row_scales(self) -> Float16[Tensor, "out planes"]:  # type: ignore[override]
        """Decode the row scales."""
        self.check()
        bits = unpack(self.row_codes, self.out_features).unflatten(0, (-1, self.scale_bits))
        low, step = self.row_grids[:, :, None]
        return expand(from_bit_planes(bits), low, step).T.contiguous()

    @cached_property
    def column_scales(self) -> Float16[Tensor, " columns"]:  # type: ignore[override]
        """Decode the column scales."""
        self.check()
        widths = [place.width for place in self.places() for _ in range(place.order)]
        codes = from_bit_planes(unpack(self.column_codes, sum(widths)))
        counts = torch.tensor(widths, device=codes.device)
        low, step = self.column_grids.repeat_interleave(counts, dim=1)
        return expand(codes, low, step)

    def with_scales(
        self, rows: Float[Tensor, "out planes"], columns: Float[Tensor, " columns"]
    ) -> "CompactWeight":
        """Return the same planes under other scales, on new grids."""
        blocks = []
        for place in self.places():
            run = columns[place.first_column :][: place.order * place.width]
            a = rows[:, place.first_plane :][:, : place.order].T
            c = run.view(place.order, place.width)
            blocks.append(Planes(self.block(place).signs, a.float(), c.float()))
        return type(self).of(blocks, self.block_size, self.scale_bits)


def positive(block: Planes) -> Planes:
    """Move the signs of scales into the planes."""
    negative = (block.rows < 0)[:, :, None] ^ (block.columns < 0)[:, None, :]
    return Planes(block.signs ^ negative, block.rows.abs(), block.columns.abs())


def _table(grids: Sequence[Grid]) -> Float16[Tensor, "2 planes"]:
    return torch.stack([torch.stack([g.low for g in grids]), torch.stack([g.step for g in grids])])
