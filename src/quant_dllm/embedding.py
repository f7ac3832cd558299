"""An embedding whose weight is packed; where head and embedding are one, both."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from quant_dllm.kernels import dispatch
from quant_dllm.packed import Packed
from quant_dllm.weights.grouped import GroupedWeight


class QuantEmbedding(Packed):
    """Look rows up and dequantize these alone.

    Attributes:
        dtype: What the states are computed in; it follows ``.to(dtype)``.
    """

    def __init__(
        self,
        kind: str,
        tensors: dict[str, Tensor],
        layout: dict[str, Any],
        dtype: torch.dtype = torch.float32,
    ):
        """Build the module from what a checkpoint holds of it; meta tensors will do."""
        super().__init__(kind, tensors, layout)
        self.dtype = dtype

    @classmethod
    def of(cls, weight: GroupedWeight, dtype: torch.dtype = torch.float32) -> "QuantEmbedding":
        """Wrap a weight."""
        return cls(weight.kind, weight.tensors(), weight.layout(), dtype)

    def forward(self, ids: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch width"]:
        """Look tokens up."""
        weight: Any = self.weight
        return weight.dequantize(ids.flatten()).to(self.dtype).view(*ids.shape, -1)

    def scores(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch vocab"]:
        """Be the head: multiply by the transpose, a tile of it at a time."""
        weight = self.weight
        device = next(self.parameters()).device  # the last block may be on another one
        return dispatch.linear(x.to(device), weight)

    def unpacked(self, dtype: torch.dtype) -> nn.Embedding:
        """Return a plain embedding of the dequantized weight."""
        values = self.weight.dequantize().to(dtype)
        return nn.Embedding.from_pretrained(values, freeze=True)

    def _apply(self, fn, recurse: bool = True):
        """Follow the model's dtype with what is computed, not with what is stored."""
        self.dtype = fn(torch.empty(0, dtype=self.dtype)).dtype
        return super()._apply(fn, recurse)
