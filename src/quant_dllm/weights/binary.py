"""Sums of scaled binary planes, an order per block of input channels: what DAQ writes.

    Ŵ[i, j] = Σ_k a_k[i] · c_k[j] · B_k[i, j],    B = ±1, k over the planes of the block of j

Symbols:
    a  row scales    c  column scales    B  signs    k  plane
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

import torch
from jaxtyping import Bool, Float, Float16, UInt8
from torch import Tensor

from quant_dllm.errors import CheckpointError
from quant_dllm.weights.packing import Place, pack, packed_width, places, unpack

P = TypeVar("P", bound="SignPlanes")


@dataclass(frozen=True)
class Planes:
    """One block before it is packed: signs (true: +1) and scales of each plane."""

    signs: Bool[Tensor, "order out block"]
    rows: Float[Tensor, "order out"]
    columns: Float[Tensor, "order block"]

    def values(self) -> Float[Tensor, "out block"]:
        """Sum the planes."""
        signs = torch.where(self.signs, 1.0, -1.0).to(self.rows.dtype)
        return torch.einsum("kob,ko,kb->ob", signs, self.rows, self.columns)


class SignPlanes:
    """Scaled binary planes, packed: all but how their scales are stored.

    Attributes:
        planes: Signs, laid out as `packing` defines (a set bit: +1).
        row_scales: a, a column for each plane, in the order of the planes.
        column_scales: c of each plane, laid end to end in the same order.
        orders: Planes of each block.
        block_size: Input channels of a block; the last one may be shorter.
    """

    planes: UInt8[Tensor, "out bytes"]
    row_scales: Float16[Tensor, "out planes"]
    column_scales: Float16[Tensor, " columns"]
    orders: UInt8[Tensor, " blocks"]
    block_size: int
    in_features: int
    names: ClassVar[tuple[str, ...]]

    def with_scales(
        self: P, rows: Float[Tensor, "out planes"], columns: Float[Tensor, " columns"]
    ) -> P:
        """Return the same planes under other scales, rounded to what this kind stores."""
        raise NotImplementedError

    @property
    def out_features(self) -> int:
        """Count the output channels."""
        return self.planes.shape[0]

    @property
    def code_bits(self) -> float:
        """Average order of an input channel."""
        return sum(p.order * p.width for p in self.places()) / self.in_features

    @property
    def stored_bits(self) -> float:
        """Count planes, scales and orders, in bits a weight."""
        stored = sum(tensor.nbytes for tensor in self.tensors().values())
        return 8 * stored / (self.out_features * self.in_features)

    def tensors(self) -> dict[str, Tensor]:
        """Name the stored tensors."""
        return {name: getattr(self, name) for name in self.names}

    def layout(self) -> dict[str, Any]:
        """Describe what the tensors do not tell."""
        return {"block_size": self.block_size, "in_features": self.in_features}

    def places(self) -> Iterator[Place]:
        """Walk over the blocks."""
        return places(self.in_features, self.block_size, self.orders.tolist())

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Tell which shapes the orders want the tensors to have."""
        found = list(self.places())
        return {
            "planes": (self.out_features, sum(p.order * packed_width(p.width) for p in found)),
            "orders": (-(-self.in_features // self.block_size),),
        }

    def check(self) -> None:
        """Hold the shapes against the orders.

        Raises:
            CheckpointError: They do not belong together.
        """
        for name, wanted in self.shapes().items():
            found = tuple(getattr(self, name).shape)
            if found != wanted or min(self.orders.tolist()) < 1:
                raise CheckpointError(
                    f"{name} of a packed weight has shape {list(found)}; its orders want "
                    f"{list(wanted)}. The checkpoint is damaged: copy it again."
                )

    def block(self, place: Place, rows: slice = slice(None)) -> Planes:
        """Unpack one block of these rows."""
        order, width = place.order, place.width
        data = self.planes[rows, place.first_byte :][:, : order * packed_width(width)]
        columns = self.column_scales[place.first_column :][: order * width]
        return Planes(
            signs=unpack(data.unflatten(1, (order, -1)), width).transpose(0, 1),
            rows=self.row_scales[rows, place.first_plane :][:, :order].T.float(),
            columns=columns.view(order, width).float(),
        )

    def scale_rows(self: P, s: Float[Tensor, " out"]) -> P:
        """Multiply the output channels; the row scales carry it."""
        return self.with_scales(self.row_scales.float() * s[:, None], self.column_scales.float())

    def dequantize(self, rows: slice = slice(None)) -> Float[Tensor, "some in"]:
        """Sum the planes of each block."""
        return torch.cat([self.block(place, rows).values() for place in self.places()], dim=1)


@dataclass(frozen=True)
class BinaryWeight(SignPlanes):
    """Blocks side by side, packed, under 16-bit scales; see `SignPlanes`."""

    planes: UInt8[Tensor, "out bytes"]
    row_scales: Float16[Tensor, "out planes"]
    column_scales: Float16[Tensor, " columns"]
    orders: UInt8[Tensor, " blocks"]
    block_size: int
    in_features: int
    kind: ClassVar[str] = "binary"
    names: ClassVar[tuple[str, ...]] = ("planes", "row_scales", "column_scales", "orders")

    @classmethod
    def of(cls, blocks: Sequence[Planes], block_size: int) -> "BinaryWeight":
        """Pack fitted blocks; their scales are rounded to float16."""
        device = blocks[0].signs.device
        return cls(
            planes=torch.cat([pack(plane) for block in blocks for plane in block.signs], dim=1),
            row_scales=torch.cat([block.rows for block in blocks]).T.half().contiguous(),
            column_scales=torch.cat([block.columns.flatten() for block in blocks]).half(),
            orders=torch.tensor([len(b.signs) for b in blocks], dtype=torch.uint8, device=device),
            block_size=block_size,
            in_features=sum(block.signs.shape[-1] for block in blocks),
        )

    def with_scales(
        self, rows: Float[Tensor, "out planes"], columns: Float[Tensor, " columns"]
    ) -> "BinaryWeight":
        """Return the same planes under other scales, rounded to float16."""
        return replace(self, row_scales=rows.half(), column_scales=columns.half())

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Tell which shapes the orders want the tensors to have."""
        found = list(self.places())
        return super().shapes() | {
            "row_scales": (self.out_features, sum(p.order for p in found)),
            "column_scales": (sum(p.order * p.width for p in found),),
        }
