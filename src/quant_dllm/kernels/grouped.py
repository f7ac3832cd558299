"""The C kernel of a packed embedding's or head's codes on a CPU, see `csrc/grouped.h`.

It reads the neutral layout: no other form of the weight is made.
"""

import ctypes
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from quant_dllm.kernels import native
from quant_dllm.weights.base import QuantizedWeight
from quant_dllm.weights.finer import FinerWeight
from quant_dllm.weights.grouped import GroupedWeight

STEP = 32  # channels of a group are a multiple of it
ALIGNED = 64  # bytes


class Grouped(ctypes.Structure):
    """``qd_grouped``."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("codes", "scales", "below", "rank")),
        *((name, ctypes.c_int64) for name in ("outputs", "inputs", "block", "row_bytes", "groups")),
        ("bits", ctypes.c_int),
    )


def refuses(x: Tensor, weight: QuantizedWeight) -> str | None:
    """Take grouped weights on a CPU, where there is a library."""
    if not isinstance(weight, GroupedWeight):
        return f"it takes embeddings and heads, and this weight is {weight.kind}"
    if weight.codes.device.type != "cpu":
        return f"the weight is on {weight.codes.device}"
    if weight.block_size % STEP:
        return f"groups of {weight.block_size} channels: {STEP} does not divide them"
    if torch.compiler.is_compiling():
        return "the call is compiled"
    return native.refuses_input(x) or native.missing()


def linear(x: Float[Tensor, "*batch in"], weight: QuantizedWeight) -> Float[Tensor, "*batch out"]:
    """Compute ``x Ŵᵀ`` in float32, whatever the input is."""
    assert isinstance(weight, GroupedWeight), "refuses() lets no other kind pass"
    inputs = x.detach().reshape(-1, weight.in_features).float().contiguous()
    y = inputs.new_empty(len(inputs), weight.out_features)
    kept = _tensors(weight)
    described = Grouped(
        *(0 if tensor is None else tensor.data_ptr() for tensor in kept), weight.out_features,
        weight.in_features, weight.block_size, weight.codes.shape[1], weight.scales.shape[1],
        weight.bits,
    )  # fmt: skip
    found, unit = _library(), native.unit()
    room = torch.empty(4 * found.qd_grouped_room(unit, weight.in_features) + ALIGNED,
                       dtype=torch.uint8)  # fmt: skip
    error = found.qd_grouped_linear(
        unit, ctypes.byref(described), inputs.data_ptr(), y.data_ptr(), len(inputs),
        room.data_ptr() + -room.data_ptr() % ALIGNED, torch.get_num_threads(),
    )  # fmt: skip
    native.check(error)
    return y.to(x.dtype).view(*x.shape[:-1], weight.out_features)


def _tensors(weight: GroupedWeight) -> tuple[Tensor | None, ...]:
    """Return codes, scales, lower codes, and where each row's lower codes are."""
    codes, scales = weight.codes.contiguous(), weight.scales.float().contiguous()
    if not isinstance(weight, FinerWeight):
        return codes, scales, None, None
    return codes, scales, weight.below.contiguous(), weight.ranks


def _library() -> Any:
    """Say what the functions take, once the library is there."""
    found = native.library()
    pointer, long, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    found.qd_grouped_room.argtypes, found.qd_grouped_room.restype = [number, long], long
    found.qd_grouped_linear.argtypes = [number, *[pointer] * 3, long, pointer, number]
    return found
