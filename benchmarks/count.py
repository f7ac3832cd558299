"""Count what some code asks of a machine: multiplications, bytes and kernels, call by call.

`Counter` notes every operation that torch dispatches. `scaled` carries counts of two small runs of
the same calls over to a size that is too large to run, since each count is linear in one axis.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

FREE = frozenset({
    "alias", "as_strided", "detach", "empty", "empty_like", "expand", "lift_fresh", "new_empty",
    "permute", "reshape", "select", "slice", "split", "squeeze", "t", "transpose", "unbind",
    "unsqueeze", "view", "_unsafe_view", "diagonal", "unfold", "empty_strided",
})  # fmt: skip
"""Operations that move nothing: another look at the same memory, or memory that nobody wrote."""


@dataclass(frozen=True)
class Call:
    """One operation: floating-point operations of products and solves, and bytes in and out."""

    name: str
    dtype: torch.dtype | str
    flops: float
    moved: float


@dataclass(frozen=True)
class Device:
    """What a device is taken to reach.

    Attributes:
        flops: A second, by type; float32 without TF32, which is a type of its own.
        bytes_per_s: Of its memory.
        launch_s: Between the starts of two kernels, as the host is.
    """

    flops: dict[torch.dtype | str, float]
    bytes_per_s: float
    launch_s: float

    def seconds(self, calls: Sequence[Call]) -> float:
        """Add up calls, each as slow as its slowest of arithmetic, memory and launch."""
        return sum(
            max(c.flops / self.flops.get(c.dtype, math.inf), c.moved / self.bytes_per_s,
                self.launch_s)
            for c in calls
        )  # fmt: skip


class Counter(TorchDispatchMode):
    """Note the calls of what runs under it."""

    def __init__(self):
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation and note it."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        if name not in FREE:
            tensors = [x for x in _flat((*args, *kwargs.values(), out)) if isinstance(x, Tensor)]
            floats = [x.dtype for x in tensors if x.dtype.is_floating_point]
            self.calls.append(
                Call(name, floats[0] if floats else torch.int64, _flops(func, args, kwargs, out),
                     float(sum(map(_memory, tensors))))
            )  # fmt: skip
        return out


def _flat(values: Any) -> Iterator[Any]:
    """Yield values, those of lists and tuples one by one."""
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from _flat(value)
        else:
            yield value


def _memory(x: Tensor) -> int:
    """Count the bytes behind a tensor: fewer than it has numbers for where it is expanded."""
    return x.untyped_storage().nbytes() if 0 in x.stride() else x.nbytes


def _flops(func: Any, args: Any, kwargs: dict[str, Any], out: Any) -> float:
    packet = func.overloadpacket
    if packet in flop_registry:
        return float(flop_registry[packet](*args, **kwargs, out_val=out))
    if packet.__name__ not in SOLVES:
        return 0.0
    first, *others = (x for x in _flat(args) if isinstance(x, Tensor))
    square = others[0] if packet.__name__ == "cholesky_solve" else first
    columns = first.shape[-1]
    return SOLVES[packet.__name__] * square.numel() * columns


SOLVES = {
    "linalg_cholesky_ex": 1 / 3, "linalg_solve_triangular": 1.0, "cholesky_inverse": 2 / 3,
    "cholesky_solve": 2.0,
}  # fmt: skip
"""Floating-point operations, over n² and the columns on the right (n where there are none)."""


def scaled(few: list[Call], many: list[Call], sizes: tuple[int, int], size: int) -> list[Call]:
    """Carry calls at two sizes over to a third.

    Args:
        few: Counted at the smaller size.
        many: The same calls at the larger.
        sizes: Both.
        size: The one that is wanted.
    """
    names = [[call.name for call in calls] for calls in (few, many)]
    assert names[0] == names[1], "another size takes other calls"
    steps = (size - sizes[0]) / (sizes[1] - sizes[0])
    return [
        Call(b.name, b.dtype, a.flops + steps * (b.flops - a.flops),
             a.moved + steps * (b.moved - a.moved))
        for a, b in zip(few, many, strict=True)
    ]  # fmt: skip
