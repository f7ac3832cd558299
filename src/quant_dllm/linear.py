"""A linear layer whose weight is packed."""

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from quant_dllm.kernels import dispatch
from quant_dllm.weights.base import WEIGHTS, QuantizedWeight


class QuantLinear(nn.Module):
    """``x Ŵᵀ + bias``, with the tensors of a packed weight in place of ``weight``.

    The tensors are frozen parameters, so that whatever moves, saves or offloads a model carries
    them; scales keep their float16 whatever dtype the model computes in.
    """

    bias: nn.Parameter | None

    def __init__(
        self, kind: str, tensors: dict[str, Tensor], layout: dict[str, Any], bias: Tensor | None
    ):
        """Build the layer from what a checkpoint holds of it; meta tensors will do."""
        super().__init__()
        self.kind: type[QuantizedWeight] = WEIGHTS.get(kind)
        self.layout = layout
        for name in self.kind.names:
            self.register_parameter(name, nn.Parameter(tensors[name], requires_grad=False))
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias))

    @classmethod
    def of(cls, weight: QuantizedWeight, bias: Tensor | None = None) -> "QuantLinear":
        """Wrap a weight that a quantizer returned."""
        return cls(weight.kind, weight.tensors(), weight.layout(), bias)

    @property
    def weight(self) -> QuantizedWeight:
        """View the parameters as the weight that they store."""
        return self.kind(**{name: getattr(self, name) for name in self.kind.names}, **self.layout)

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """Multiply with the fastest kernel that takes the call."""
        y = dispatch.linear(x, self.weight)
        return y if self.bias is None else y + self.bias

    def _apply(self, fn, recurse: bool = True):
        """Move with the model, but let no ``.to(dtype)`` change what is stored."""
        stored = {id(getattr(self, name)) for name in self.kind.names}

        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            kept = id(tensor) not in stored or moved.dtype == tensor.dtype
            return moved if kept else tensor.to(moved.device)

        return super()._apply(move, recurse)

    def extra_repr(self) -> str:
        """Say what is stored."""
        weight = self.weight
        return f"{weight.in_features}, {weight.out_features}, {weight.kind}, {self.layout}"
