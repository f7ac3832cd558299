"""Modules that hold the tensors of a packed weight in place of ``weight``."""

from typing import Any

import torch
from torch import Tensor, nn

from quant_dllm.weights.base import WEIGHTS, QuantizedWeight


class Packed(nn.Module):
    """A packed weight in a network.

    The tensors are frozen parameters, so that whatever moves, saves or offloads a model carries
    them; scales keep their float16 whatever dtype the model computes in.
    """

    def __init__(self, kind: str, tensors: dict[str, Tensor], layout: dict[str, Any]):
        """Build the module from what a checkpoint holds of it; meta tensors will do."""
        super().__init__()
        self.kind: type[QuantizedWeight] = WEIGHTS.get(kind)
        self.layout = layout
        for name in self.kind.names:
            self.register_parameter(name, nn.Parameter(tensors[name], requires_grad=False))

    @property
    def weight(self) -> QuantizedWeight:
        """View the parameters as the weight that they store."""
        return self.kind(**{name: getattr(self, name) for name in self.kind.names}, **self.layout)

    def unpacked(self, dtype: torch.dtype) -> nn.Module:
        """Return a plain module of the dequantized weight."""
        raise NotImplementedError

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
