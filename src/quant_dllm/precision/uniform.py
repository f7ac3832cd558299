"""The same bits everywhere: the baseline, and what other policies start from."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from quant_dllm.errors import RecipeError
from quant_dllm.statistics.layer import LayerStatistics, Needs

WIDEST = 8


@dataclass(frozen=True, kw_only=True)
class Uniform:
    """Give every block of input channels the budget.

    Attributes:
        bits: Average budget, in bits a weight; an allocation meets it exactly.
        block_size: Input channels of a block; the last one of a matrix may be shorter.
    """

    bits: int = 2
    block_size: int = 128
    needs: ClassVar[Needs] = Needs.NOTHING

    def __post_init__(self) -> None:
        """Refuse a budget that no block can have."""
        if not 1 <= self.bits <= WIDEST:
            raise RecipeError(
                f"precision.bits is {self.bits}; a whole number from 1 to {WIDEST} is wanted."
            )
        if self.block_size < 1:
            raise RecipeError(f"precision.block_size is {self.block_size}; at least 1 is wanted.")

    def allocate(
        self, weight: Float[Tensor, "out in"], stats: LayerStatistics
    ) -> Int[Tensor, " blocks"]:
        """Return the bits of each block of input channels; their mean is the budget."""
        return torch.full((-(-weight.shape[1] // self.block_size),), self.bits)
