"""Keys and values of a canvas, kept from one call to the next."""

import torch
from jaxtyping import Float
from torch import Tensor


class KeyValues:
    """The keys and values that one block gave, at every position of a canvas.

    Args:
        canvas: Positions of the canvas.
    """

    def __init__(self, canvas: int):
        self.canvas = canvas
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def put(
        self,
        at: slice,
        keys: Float[Tensor, "batch heads length head"],
        values: Float[Tensor, "batch heads length head"],
    ) -> tuple[Tensor, Tensor]:
        """Write what some positions give; return what all positions gave last."""
        if self.keys is None or self.values is None:
            batch, heads, _, width = keys.shape
            self.keys = keys.new_zeros(batch, heads, self.canvas, width)
            self.values = torch.zeros_like(self.keys)
        self.keys[:, :, at] = keys
        self.values[:, :, at] = values
        return self.keys, self.values
