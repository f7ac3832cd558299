"""What becomes of the embedding and the head, which are outside the blocks.

At two bits they are more than half of the file of an 8B model that leaves them at 16.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from quant_dllm.errors import RecipeError
from quant_dllm.weights.grouped import GroupedWeight

TILE = 1 << 22  # weights rounded at once
SHARES = tuple(1 - step / 50 for step in range(16))  # of a group's reach, down to 0.7


@dataclass(frozen=True, kw_only=True)
class Unchanged:
    """Embedding and head as the model has them (paper)."""


@dataclass(frozen=True, kw_only=True)
class Grouped:
    """Round to nearest in groups, the clip of each searched by its squared error.

    Attributes:
        bits: Of a code.
        block_size: Channels of a group.
    """

    bits: Literal[4, 8] = 8
    block_size: int = 128

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing."""
        if self.block_size < 1:
            raise RecipeError(f"outside.block_size is {self.block_size}; 1 or more is wanted.")

    def quantize(self, weight: Float[Tensor, "out in"]) -> GroupedWeight:
        """Round a weight, some rows at a time."""
        rows = max(1, TILE // weight.shape[1])
        parts = [self._round(part.float()) for part in weight.split(rows)]
        codes, scales = (torch.cat(found) for found in zip(*parts, strict=True))
        return GroupedWeight.of(codes, scales, self.bits, self.block_size)

    def _round(self, weight: Float[Tensor, "rows in"]) -> tuple[Tensor, Tensor]:
        """Return codes [rows, in] and scales [rows, groups]."""
        width, half = weight.shape[1], 2 ** (self.bits - 1)
        groups = F.pad(weight, (0, -width % self.block_size)).unflatten(1, (-1, self.block_size))
        farthest = groups.gather(2, groups.abs().argmax(2, keepdim=True))
        best = (farthest / -half).half().float()
        least = torch.full_like(best, torch.inf)
        for share in SHARES:
            scale = (farthest * (share / -half)).half().float()
            rounded = _codes(groups, scale, half).sub_(half).mul_(scale)
            error = (rounded - groups).square_().sum(2, keepdim=True)
            best = torch.where(error < least, scale, best)
            least = torch.minimum(error, least)
        codes = _codes(groups, best, half).to(torch.uint8)
        return codes.flatten(1)[:, :width], best[..., 0].half()


def _codes(groups: Tensor, scale: Tensor, half: int) -> Tensor:
    """Return the nearest codes; a group of zeros has no scale, and its codes stand for zero."""
    divisor = torch.where(scale == 0, torch.inf, scale)
    return (groups / divisor).round_().add_(half).clamp_(0, 2 * half - 1)
