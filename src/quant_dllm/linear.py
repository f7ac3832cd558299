"""A linear layer whose weight is packed."""

import functools
import sys
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from quant_dllm.kernels import dispatch
from quant_dllm.kernels.dispatch import PreparedWeight
from quant_dllm.packed import Packed
from quant_dllm.weights.base import QuantizedWeight

Function = TypeVar("Function", bound=Callable[..., Any])


def eager(function: Function) -> Function:
    """Keep a function out of compiled graphs; nobody else waits for the compiler's import."""

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        if "torch._dynamo" in sys.modules:
            return torch.compiler.disable(function)(*args)
        return function(*args)

    call._torchdynamo_disable = True  # pyright: ignore[reportAttributeAccessIssue]
    return cast(Function, call)


class QuantLinear(Packed):
    """``x Ŵᵀ + bias``, with the tensors of a packed weight in place of ``weight``.

    A kernel that wants its own layout gets it at the first call, or from `prepare`. The prepared
    weight then stands in for the tensors, which are `None` meanwhile: two bits a weight are in
    memory once. Saving, loading and moving bring the tensors back.

    Attributes:
        prepared: The weight in a kernel's layout, if one has asked for it.
    """

    bias: nn.Parameter | None
    prepared: PreparedWeight | None

    def __init__(
        self, kind: str, tensors: dict[str, Tensor], layout: dict[str, Any], bias: Tensor | None
    ):
        """Build the layer from what a checkpoint holds of it; meta tensors will do."""
        super().__init__(kind, tensors, layout)
        self.prepared = None
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias))

    @classmethod
    def of(cls, weight: QuantizedWeight, bias: Tensor | None = None) -> "QuantLinear":
        """Wrap a weight that a quantizer returned."""
        return cls(weight.kind, weight.tensors(), weight.layout(), bias)

    @property
    def weight(self) -> QuantizedWeight:
        """View the parameters as the weight that they store, or restore it."""
        return super().weight if self.prepared is None else self.prepared.restore()

    @property
    def in_features(self) -> int:
        """Count the input channels."""
        known = self.layout.get("in_features")
        return self.weight.in_features if known is None else known

    @property
    def weight_bytes(self) -> int:
        """Count the bytes in memory that hold the weight."""
        if self.prepared is not None:
            return self.prepared.nbytes
        return sum(getattr(self, name).nbytes for name in self.kind.names)

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """Multiply with the fastest kernel that takes the call."""
        if self.prepared is None:
            self.prepare(x)
        if self.prepared is not None and self.prepared.refuses(x) is None:
            return self.prepared.linear(x, self.bias)
        y = dispatch.linear(x, self.weight)
        return y if self.bias is None else y + self.bias

    @eager
    def prepare(self, like: Float[Tensor, "*batch in"]) -> None:
        """Bring the weight into the layout of the kernel that takes inputs like this one."""
        if getattr(getattr(self, "_hf_hook", None), "offload", False):
            return  # the tensors are on a disk, and go back there after every call
        weight = self.weight
        self.prepared = dispatch.prepare(like, weight)
        if self.prepared is not None:
            for name in self.kind.names:
                self._parameters[name] = None

    def unpacked(self, dtype: torch.dtype) -> nn.Linear:
        """Return a plain layer of the dequantized weight: exact products, at 16 or 32 bits."""
        weight = self.weight
        with torch.device("meta"):
            made = nn.Linear(weight.in_features, weight.out_features, bias=self.bias is not None)
        made.weight = nn.Parameter(weight.dequantize().to(dtype), requires_grad=False)
        made.register_parameter("bias", self.bias)
        return made

    def settle(self) -> None:
        """Give up a kernel's layout for the tensors."""
        if self.prepared is None:
            return
        weight, self.prepared = self.prepared.restore(), None
        for name, tensor in weight.tensors().items():
            self._parameters[name] = nn.Parameter(tensor, requires_grad=False)

    def _apply(self, fn, recurse: bool = True):
        """Move the tensors, whichever layout is in memory."""
        self.settle()
        return super()._apply(fn, recurse)

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        """Save the tensors, whichever layout is in memory."""
        if self.prepared is not None:
            tensors = self.prepared.restore().tensors()
            destination |= {prefix + name: tensor for name, tensor in tensors.items()}
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, *args, **kwargs):
        """Load into the tensors."""
        self.settle()
        super()._load_from_state_dict(*args, **kwargs)
