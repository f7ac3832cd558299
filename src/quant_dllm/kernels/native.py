"""The C kernels on a CPU: table look-ups of four channels at a time, see `csrc/qdllm.h`.

A weight is packed once into the order in which the kernel reads it; the packed form takes the place
of the neutral one in memory and gives it back when it is asked for.
"""

import ctypes
import os
import threading
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from quant_dllm.errors import RequestError, hint
from quant_dllm.kernels import compile as compiler
from quant_dllm.kernels.operator import OPERATOR
from quant_dllm.kernels.pages import mapped, room
from quant_dllm.weights.base import QuantizedWeight
from quant_dllm.weights.binary import BinaryWeight, SignPlanes

ABI = 2
LEVEL = "QUANT_DLLM_CPU"  # forces a unit: amx, avx512, avx2, neon, generic
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
SMALL_BUFFER = 4
MOST_ORDER = 8
ERRORS = {
    1: "sizes that make no sense",
    2: "a packed weight of another version",
    3: "instructions that this processor lacks",
    SMALL_BUFFER: "a buffer that is too small",
}

_workspace = threading.local()


@dataclass(frozen=True)
class NativeWeight:
    """A binary weight in the layout of one unit.

    Attributes:
        packed: Header, segments, column scales, and the chunks of signs and row scales, in bytes.
        unit: Index of the unit in the library.
        precise: Whether to look up two digits of each table entry.
        shapes: Shapes of the neutral tensors, in the order of `BinaryWeight.names`.
    """

    packed: Tensor
    unit: int
    precise: bool
    shapes: tuple[tuple[int, ...], ...]
    block_size: int
    in_features: int
    out_features: int

    @property
    def nbytes(self) -> int:
        """Count the bytes that it holds."""
        return self.packed.nbytes

    def refuses(self, x: Tensor) -> str | None:
        """Say why a call cannot be taken; the weight is known to be fit."""
        return refuses_input(x)

    def linear(
        self, x: Float[Tensor, "*batch in"], bias: Float[Tensor, " out"] | None = None
    ) -> Float[Tensor, "*batch out"]:
        """Compute ``x Ŵᵀ + bias``."""
        facts = [self.out_features, self.unit, int(self.precise)]
        return OPERATOR(x, [self.packed], bias, facts)

    def restore(self) -> BinaryWeight:
        """Return the weight in the neutral layout, bit for bit."""
        kinds = (torch.uint8, torch.float16, torch.float16, torch.uint8)
        made = [torch.empty(s, dtype=kind) for s, kind in zip(self.shapes, kinds, strict=True)]
        pointers = [tensor.data_ptr() for tensor in made]
        check(library().qd_unpack(self.packed.data_ptr(), *pointers, torch.get_num_threads()))
        named = dict(zip(BinaryWeight.names, made, strict=True))
        return BinaryWeight(**named, block_size=self.block_size, in_features=self.in_features)


def refuses(x: Tensor, weight: QuantizedWeight) -> str | None:
    """Take binary weights on a CPU, where there is a library."""
    if not isinstance(weight, SignPlanes):
        return f"it takes binary weights, and this one is {weight.kind}"
    if weight.planes.device.type != "cpu":
        return f"the weight is on {weight.planes.device}"
    if weight.block_size > 128 and weight.block_size % 8:
        return f"blocks of {weight.block_size} channels: 8 does not divide them"
    if int(weight.orders.max()) > MOST_ORDER:
        return f"a block has more than {MOST_ORDER} planes"
    return refuses_input(x) or missing()


def prepare(weight: QuantizedWeight, precise: bool = False) -> NativeWeight:
    """Pack a weight for the best unit of this processor.

    Raises:
        CheckpointError: Its tensors do not belong together.
    """
    assert isinstance(weight, SignPlanes), "refuses() lets no other kind pass"
    weight.check()  # the C code trusts the shapes
    tensors = [getattr(weight, name).detach().contiguous() for name in BinaryWeight.names]
    sizes = (len(weight.orders), weight.in_features, weight.out_features, weight.block_size)
    count = library().qd_packed_bytes(unit(), tensors[3].data_ptr(), *sizes)
    check(-min(count, 0))
    packed = room(count)
    pointers = [tensor.data_ptr() for tensor in tensors]
    check(
        library().qd_pack(
            unit(), packed.data_ptr(), count, *pointers, *sizes, torch.get_num_threads()
        )
    )
    shapes = tuple(tuple(tensor.shape) for tensor in tensors)
    return NativeWeight(
        packed, unit(), precise, shapes, weight.block_size, weight.in_features, weight.out_features
    )


def linear(x: Float[Tensor, "*batch in"], weight: QuantizedWeight) -> Float[Tensor, "*batch out"]:
    """Compute ``x Ŵᵀ`` once; a layer keeps what `prepare` returns."""
    return prepare(weight).linear(x)


def multiply(
    x: Float[Tensor, "*batch in"],
    packed: list[Tensor],
    bias: Float[Tensor, " out"] | None,
    facts: list[int],
) -> Float[Tensor, "*batch out"]:
    """Run the kernel: the CPU's implementation of the operator.

    Args:
        x: Inputs; rows that do not lie side by side are copied.
        packed: `NativeWeight.packed`.
        bias: Of any dtype, or none.
        facts: Outputs, index of the unit, whether to be precise.
    """
    out, which, precise = facts
    x = x.contiguous()
    y = x.new_empty((*x.shape[:-1], out))
    if bias is not None:
        bias = bias.to(x.dtype).contiguous()
    call, threads = library().qd_linear, torch.get_num_threads()
    place = getattr(_workspace, "place", None)
    while True:
        error = call(
            packed[0].data_ptr(), which, x.data_ptr(), None if bias is None else bias.data_ptr(),
            y.data_ptr(), x.numel() // x.shape[-1], DTYPES[x.dtype], precise,
            0 if place is None else place.data_ptr(), 0 if place is None else place.numel(),
            threads,
        )  # fmt: skip
        if error != SMALL_BUFFER:
            break
        tokens = x.numel() // x.shape[-1]
        wanted = library().qd_workspace(packed[0].data_ptr(), which, tokens, threads)
        place = _workspace.place = mapped(wanted)
    check(error)
    return y


@cache
def library() -> ctypes.CDLL:
    """Load the library, made now where there is none yet.

    Raises:
        CompileError: There is none, or it is of another version.
    """
    try:
        return open_library(compiler.find())
    except compiler.CompileError as unfit:
        if not compiler.PREBUILT.is_file():
            raise
        try:
            return open_library(compiler.made())
        except compiler.CompileError as error:
            raise compiler.CompileError(f"{unfit}; {error}") from None


def open_library(path: Path) -> ctypes.CDLL:
    """Load a library from a file.

    Raises:
        CompileError: It cannot be loaded, or is of another version.
    """
    try:
        found = ctypes.CDLL(str(path))
        version = found.qd_abi()
    except (OSError, AttributeError) as error:
        raise compiler.CompileError(f"{path} cannot be loaded: {error}") from None
    if version != ABI:
        raise compiler.CompileError(f"{path} has version {version}; {ABI} is wanted")
    pointer, long, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    found.qd_unit_name.restype = found.qd_unit_lacks.restype = ctypes.c_char_p
    found.qd_packed_bytes.argtypes = [number, pointer, *[long] * 4]
    found.qd_packed_bytes.restype = found.qd_workspace.restype = long
    found.qd_pack.argtypes = [number, pointer, long, *[pointer] * 4, *[long] * 4, number]
    found.qd_unpack.argtypes = [*[pointer] * 5, number]
    found.qd_workspace.argtypes = [pointer, number, long, number]
    found.qd_linear.argtypes = [pointer, number, *[pointer] * 3, long, number, number, pointer,
                                long, number]  # fmt: skip
    return found


@cache
def missing() -> str | None:
    """Say why there is no library; ``None`` where there is one."""
    try:
        library()
    except compiler.CompileError as error:
        return str(error)
    return None


def units() -> dict[str, str | None]:
    """Map the units, best first, to the instruction that this processor lacks for them."""
    found, index = {}, 0
    while name := library().qd_unit_name(index):
        lack = library().qd_unit_lacks(index)
        found[name.decode()] = lack.decode() if lack else None
        index += 1
    return found


@cache
def unit() -> int:
    """Return the index of the unit to use: the best one, or what ``QUANT_DLLM_CPU`` names.

    Raises:
        RequestError: The one named is unknown, or this processor lacks its instructions.
    """
    known, forced = units(), os.environ.get(LEVEL)
    if not forced:
        return next(i for i, lack in enumerate(known.values()) if lack is None)
    if forced not in known:
        raise RequestError(
            f"{LEVEL} is {forced!r}.{hint(forced, known)} Known: {', '.join(known)}."
        )
    if known[forced]:
        raise RequestError(f"{LEVEL} is {forced}, and this processor lacks {known[forced]}.")
    return list(known).index(forced)


def refuses_input(x: Tensor) -> str | None:
    """Say why no kernel of the library takes such an input."""
    if x.device.type != "cpu":
        return f"the input is on {x.device}"
    if x.dtype not in DTYPES:
        return f"the input is {x.dtype}"
    if x.requires_grad and torch.is_grad_enabled():
        return "gradients of the input are asked for"
    return None


def check(error: int) -> None:
    """Hold what the library returned against zero."""
    assert error == 0, f"the native kernel was called with {ERRORS.get(error, error)}"
