"""One operator for all kernels, so that ``torch.compile`` sees a call and not what is behind it."""

import torch
from torch import Tensor

LIBRARY = torch.library.Library("quant_dllm", "DEF")
LIBRARY.define("linear(Tensor x, Tensor[] packed, Tensor? bias, int[] facts) -> Tensor")


def _fake(x: Tensor, packed: list[Tensor], bias: Tensor | None, facts: list[int]) -> Tensor:
    return x.new_empty((*x.shape[:-1], facts[0]))


def _on_cpu(x: Tensor, packed: list[Tensor], bias: Tensor | None, facts: list[int]) -> Tensor:
    from quant_dllm.kernels import native

    return native.multiply(x, packed, bias, facts)


def _on_cuda(x: Tensor, packed: list[Tensor], bias: Tensor | None, facts: list[int]) -> Tensor:
    from quant_dllm.kernels import triton

    return triton.multiply(x, packed, bias, facts)


LIBRARY.impl("linear", _on_cpu, "CPU")
LIBRARY.impl("linear", _on_cuda, "CUDA")
torch.library.register_fake("quant_dllm::linear", _fake, lib=LIBRARY)
OPERATOR = torch.ops.quant_dllm.linear.default
"""``linear(x, packed, bias, facts)``: what a kernel keeps of a weight, ``facts[0]`` its outputs."""
