"""Triton kernels for GPUs: planes as tiles of ±1 for few tokens, one summed tile for more.

A product of up to `FUSED` tokens reads two bits a weight; above, the weight is written out once a
call and multiplied by the vendor's library. float32 inputs are rounded to bfloat16 on their way
into the tensor cores. The tiles of a shape are chosen by trying them at its first call; a call that
is being captured into a CUDA graph takes the first candidate of a shape that was never called.
"""

import os
from collections.abc import Callable
from functools import cache, partial
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from quant_dllm.kernels.triton_tiles import FEW, Tile, choose, programs
from quant_dllm.kernels.triton_weight import TritonWeight, refuses_input
from quant_dllm.weights.base import QuantizedWeight
from quant_dllm.weights.binary import SignPlanes

FUSED = 1024  # tokens up to which Ŵ is not written
GROUPS = (32, 64, 128, 256)
ONES = {torch.bfloat16: 0x3F803F80, torch.float16: 0x3C003C00}  # a pair of 1.0


def refuses(x: Tensor, weight: QuantizedWeight) -> str | None:
    """Take binary weights on a GPU, where Triton is installed."""
    if not isinstance(weight, SignPlanes):
        return f"it takes binary weights, and this one is {weight.kind}"
    if weight.planes.device.type != "cuda":
        return f"the weight is on {weight.planes.device}"
    return refuses_input(x) or refuses_layout(weight) or _missing(x.device)


def refuses_layout(weight: SignPlanes) -> str | None:
    """Say why a weight cannot be brought into this layout."""
    if weight.block_size not in GROUPS:
        return f"blocks of {weight.block_size} channels; it takes {', '.join(map(str, GROUPS))}"
    return None


def prepare(weight: QuantizedWeight) -> TritonWeight:
    """Bring a weight into the order in which the GPU reads it, on its device."""
    assert isinstance(weight, SignPlanes), "refuses() lets no other kind pass"
    return TritonWeight.of(weight)


def linear(x: Float[Tensor, "*batch in"], weight: QuantizedWeight) -> Float[Tensor, "*batch out"]:
    """Compute ``x Ŵᵀ`` once; a layer keeps what `prepare` returns."""
    return prepare(weight).linear(x)


def multiply(
    x: Float[Tensor, "*batch in"],
    packed: list[Tensor],
    bias: Float[Tensor, " out"] | None,
    facts: list[int],
) -> Float[Tensor, "*batch out"]:
    """Run the kernels: the GPU's implementation of the operator.

    Args:
        x: Inputs of any stride.
        packed: `TritonWeight.tensors`.
        bias: Of any dtype, or none.
        facts: `TritonWeight.facts`.
    """
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    shape = (*x.shape[:-1], facts[0])
    if not len(rows):
        return x.new_empty(shape)
    if len(rows) > FUSED:
        weight = dequantize(packed, facts, x.shape[-1], x.dtype)
        return F.linear(rows, weight, None if bias is None else bias.to(x.dtype)).view(shape)
    run = partial(_few if len(rows) <= FEW else _many, rows, packed, bias, facts)
    bucket = max(16, 1 << (len(rows) - 1).bit_length())
    key = (bucket, *facts, x.shape[-1], packed[2].shape[1], x.dtype, x.device)
    return run(choose(key, run)).view(shape)


def dequantize(
    packed: list[Tensor], facts: list[int], in_features: int, dtype: torch.dtype
) -> Float[Tensor, "out in"]:
    """Write Ŵ, rounded to ``dtype``; ``packed`` and ``facts`` are those of a `TritonWeight`."""
    words, rows, columns, groups, _ = packed
    outputs, tile, first = facts[0], 64, 0
    weight = torch.empty(outputs, in_features, dtype=dtype, device=words.device)
    for order, count in enumerate(facts[1:]):
        if count:
            programs().dequantize[(-(-outputs // tile), count)](
                words, rows, columns, groups, weight, first, in_features, outputs,
                ORDER=order, GROUP=columns.shape[1], N=tile, num_warps=4,
            )  # fmt: skip
        first += count * order
    return weight


def _few(
    x: Tensor, packed: list[Tensor], bias: Tensor | None, facts: list[int], tile: Tile
) -> Tensor:
    words, rows, columns, groups, _ = packed
    (tokens, inputs), outputs, planes, group = x.shape, facts[0], len(words), columns.shape[1]
    kind = torch.float16 if x.dtype == torch.float16 else torch.bfloat16
    scaled = torch.empty(planes, tokens, group, dtype=kind, device=x.device)
    programs().scale_inputs[(planes, -(-tokens // 16))](
        x, columns, groups, scaled, tokens, inputs, GROUP=group, M=16, num_warps=4
    )
    each = -(-planes // tile.splits)

    def launch(y: Tensor, grid: tuple[int, int, int]) -> None:
        programs().multiply_planes[grid](
            scaled, words, rows, bias, y, tokens, outputs, planes, each,
            HAS_BIAS=bias is not None, ONES=ONES[kind], UPCAST=programs().INTERPRETED,
            GROUP=group, N=tile.outputs, M=tile.tokens,
            num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip

    return _in_splits(launch, x, outputs, tile)


def _many(
    x: Tensor, packed: list[Tensor], bias: Tensor | None, facts: list[int], tile: Tile
) -> Tensor:
    words, rows, columns, groups, counts = packed
    (tokens, inputs), outputs, blocks = x.shape, facts[0], sum(facts[1:])
    language = programs().tl
    kind = language.float16 if x.dtype == torch.float16 else language.bfloat16
    each = -(-blocks // tile.splits)

    def launch(y: Tensor, grid: tuple[int, int, int]) -> None:
        programs().multiply_groups[grid](
            x, words, rows, columns, groups, counts, bias, y, tokens, inputs, outputs, each,
            HAS_BIAS=bias is not None, DTYPE=kind, UPCAST=programs().INTERPRETED,
            MOST=len(facts) - 2, GROUP=columns.shape[1], N=tile.outputs, M=tile.tokens,
            num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip

    return _in_splits(launch, x, outputs, tile)


def _in_splits(
    launch: Callable[[Tensor, tuple[int, int, int]], None], x: Tensor, outputs: int, tile: Tile
) -> Tensor:
    """Launch with a buffer for the shares of all splits, and add them up; no share, no buffer."""
    y = x.new_empty(len(x), outputs)
    grid = (-(-outputs // tile.outputs), -(-len(x) // tile.tokens), tile.splits)
    if tile.splits == 1:
        launch(y, grid)
        return y
    shares = torch.empty(tile.splits, *y.shape, dtype=torch.float32, device=x.device)
    launch(shares, grid)
    programs().add_splits[(-(-y.numel() // 1024),)](
        shares, y, y.numel(), tile.splits, BLOCK=1024, num_warps=4
    )
    return y


def missing() -> str | None:
    """Say why nothing can run on a GPU of this machine."""
    if not torch.cuda.is_available():
        return "torch sees no GPU"
    return _missing(torch.device("cuda", torch.cuda.current_device()))


@cache
def _missing(device: torch.device) -> str | None:
    """Say why no program can run on a GPU."""
    if find_spec("triton") is None:
        return "triton is not installed; pip install 'quant-dllm[gpu]'"
    if os.environ.get("TRITON_INTERPRET") == "1":
        return "TRITON_INTERPRET is set"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "the GPU lacks bfloat16 tensor cores (compute capability 8.0)"
    return None
