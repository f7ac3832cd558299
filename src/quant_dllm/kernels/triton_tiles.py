"""How a product is cut into programs: proposals, and the fastest of them, found by trying."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

FEW = 32  # tokens up to which planes stay apart
TRY = True  # whether proposals are timed; the first is taken if not


@dataclass(frozen=True)
class Tile:
    """How one product is cut: tokens and outputs of a program, shares of the inner axis."""

    tokens: int
    outputs: int
    splits: int = 1
    warps: int = 4
    stages: int = 3


_chosen: dict[tuple, Tile] = {}


def candidates(tokens: int, outputs: int, processors: int) -> Iterator[Tile]:
    """Propose tiles, the safest first.

    Args:
        tokens: Of the call, rounded up to a power of two.
        outputs: Output channels.
        processors: Multiprocessors that want something to do.
    """
    few = tokens <= FEW
    most = 16 if few else 4  # shares are written and read again: little beside few tokens' weight
    for height in (64, 128):
        programs_of_one = -(-outputs // height) * -(-tokens // 128)
        full = max(1, processors // programs_of_one)
        for splits in sorted({min(most, _power_of_two(full * times)) for times in (1, 2, 4)}):
            tile = Tile(min(max(tokens, 16), 128), height, splits, 4 if few else 8)
            yield tile
            yield replace(tile, stages=2) if few else replace(tile, warps=4)


def _power_of_two(count: int) -> int:
    """Round down."""
    return 1 << (count.bit_length() - 1)


def choose(key: tuple, run: Callable[[Tile], Tensor]) -> Tile:
    """Return the fastest tile of a shape; tried once, and never while a graph is captured."""
    if key in _chosen:
        return _chosen[key]
    interpreted = programs().INTERPRETED
    count = 1 if interpreted else torch.cuda.get_device_properties(key[-1]).multi_processor_count
    proposed = list(candidates(key[0], key[1], count))
    if interpreted or not TRY or torch.cuda.is_current_stream_capturing():
        return proposed[0]
    _chosen[key] = min(proposed, key=lambda tile: _milliseconds(run, tile))
    return _chosen[key]


def _milliseconds(run: Callable[[Tile], Tensor], tile: Tile) -> float:
    testing, errors = programs().triton.testing, programs().triton.runtime.errors
    try:
        return testing.do_bench(lambda: run(tile), warmup=5, rep=20, return_mode="median")
    except errors.OutOfResources:  # this tile asks for more shared memory than the GPU has
        return float("inf")


@cache
def programs() -> ModuleType:
    """Import what runs on the GPU, and Triton with it."""
    from quant_dllm.kernels import triton_programs

    return triton_programs
