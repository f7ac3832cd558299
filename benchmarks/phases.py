"""What every phase of the default recipe does on LLaDA-8B, operation by operation.

The code of each phase runs on a processor at LLaDA-8B's widths, with few rows or tokens at two
sizes; every operation that it takes is counted, and carried over to the true size. `cost.py` turns
the counts into seconds.
"""

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from count import Call, Counter, scaled
from quant_dllm.kernels import reference
from quant_dllm.linear import QuantLinear
from quant_dllm.models.backbone import Block
from quant_dllm.models.config import BackboneConfig
from quant_dllm.models.sight import Sight
from quant_dllm.pipeline.entry import BATCH_TOKENS
from quant_dllm.pipeline.tune import PART_TOKENS, VISIT_TOKENS
from quant_dllm.quantizers.outside import LAUNCHES, TILE
from quant_dllm.recipe import DEFAULT, Recipe
from quant_dllm.statistics.layer import LayerStatistics, Needs
from quant_dllm.tuning.objective import HEAD_ROWS, TopLogits, divergence
from quant_dllm.tuning.recompute import recompute
from quant_dllm.tuning.scales import thaw
from quant_dllm.weights.finer import FinerWeight
from quant_dllm.weights.random import random_weight

WIDTH, MLP, VOCAB, BLOCKS, HEADS = 4096, 12288, 126464, 32, 32
LAYERS = {(WIDTH, WIDTH): 4, (MLP, WIDTH): 2, (WIDTH, MLP): 1}
INPUTS = {WIDTH: 3, MLP: 1}  # groups of layers that share their input, by its channels
WEIGHTS = sum(out * inputs * n for (out, inputs), n in LAYERS.items())
SCALES = sum(n * 2 * (out * m / 128 + m) for (out, m), n in LAYERS.items())  # of a block
CONFIG = BackboneConfig(
    width=WIDTH, blocks=BLOCKS, heads=HEADS, kv_heads=HEADS, mlp_width=MLP, vocab=VOCAB,
    context=4096, rope_theta=5e5, norm_eps=1e-5,
)  # fmt: skip
TF32 = "tf32"
DISK = 2e9  # bytes/s at which 16-bit weights are read and hashed, assumed


def counted(work: Callable[[], Any]) -> list[Call]:
    """Count what some work does."""
    with Counter() as counter:
        work()
    return counter.calls


def rounding(out: int, inputs: int) -> list[Call]:
    """Count the rounding of a layer [out, inputs], two planes a block; its factor is there.

    The larger count is of the same rows twice, so that what iterates stops at the same step.
    """
    quantizer = Recipe.load(DEFAULT).build()[2]
    stats = correlated(inputs)
    bits = torch.full((inputs // 128,), 2)
    few = torch.randn(8, inputs, generator=torch.Generator().manual_seed(8))

    def of(rows: int) -> list[Call]:
        weight = few.repeat(rows // 8, 1)
        assert stats.factor.isfinite().all()  # it is forgotten at the end of a rounding
        return counted(lambda: quantizer.quantize(weight, stats, bits, 128))

    return scaled(of(8), of(16), (8, 16), out)


def rounding_head(rows: int) -> list[Call]:
    """Count the rounding of the head's rows that are rounded at once."""
    form, stats = Recipe.load(DEFAULT).outside.build("outside"), correlated(WIDTH)
    few = torch.randn(8, WIDTH, generator=torch.Generator().manual_seed(8))

    def of(some: int) -> list[Call]:
        weight, finer = few.repeat(some // 8, 1), torch.arange(some) % 8 == 0
        return counted(lambda: form.quantize(weight, finer, stats))

    return scaled(of(8), of(16), (8, 16), rows)


def correlated(inputs: int) -> LayerStatistics:
    """Return statistics of made-up inputs, factored."""
    dice = torch.Generator().manual_seed(0)
    scale = torch.linspace(0.2, 2.0, inputs)
    moment = torch.outer(scale, scale) * 0.1 + torch.diag(scale.square())
    few = torch.randn(256, inputs, generator=dice) * scale
    moment += few.T @ few / 256
    stats = LayerStatistics(moment * 1000, scale, 1000, drift=moment * 10)
    assert stats.factor.isfinite().all()
    return stats


def block(tunable: bool, again: bool = False) -> nn.Module:
    """Make one block at true width, its weights random, in bfloat16; let it run again to learn."""
    made = Block(CONFIG).to(torch.bfloat16)
    if tunable:
        for name, layer in list(made.named_modules()):
            if isinstance(layer, nn.Linear):
                out, inputs = layer.weight.shape
                weight = random_weight(out, inputs, 128, [2] * (inputs // 128))
                made.set_submodule(name, QuantLinear.of(weight))
        thaw(made)
    if again:
        recompute([made])
    return made


def passing(made: nn.Module, tokens: int, backward: bool) -> list[Call]:
    """Count how tokens pass a block, and how the gradient comes back; attention is over 32."""
    sight = Sight.of(CONFIG, 32, "cpu")

    def of(windows: int) -> list[Call]:
        x = torch.randn(windows, 32, WIDTH, dtype=torch.bfloat16).requires_grad_(backward)

        def work() -> None:
            with torch.set_grad_enabled(backward):
                y = made(x, sight)
                if backward:
                    y.backward(torch.ones_like(y))

        for parameter in made.parameters():
            parameter.grad = None
        return counted(work)

    of(1)  # what is cached at the first call is not counted
    return scaled(of(1), of(2), (32, 64), tokens)


def attention(tokens: int, passes: float) -> list[Call]:
    """Count the products of scores and values over windows of 4096, which `passing` does not."""
    return [Call("attention", torch.bfloat16, 4.0 * tokens * 4096 * WIDTH * passes, 0.0)]


def head(positions: int, backward: bool) -> list[Call]:
    """Count the packed head and the loss, or the 16-bit head and its likeliest tokens."""
    dice, weight = torch.Generator().manual_seed(0), packed_head()
    target = TopLogits.of(torch.randn(4, VOCAB, generator=dice), 128)
    dense = weight.dequantize().bfloat16()

    def of(rows: int) -> list[Call]:
        x = torch.randn(rows, WIDTH, dtype=torch.bfloat16, generator=dice).requires_grad_(backward)
        some = TopLogits(target.log_p[:1].expand(rows, -1).contiguous(),
                         target.tokens[:1].expand(rows, -1).contiguous())  # fmt: skip

        def work() -> None:
            if backward:
                divergence(reference.linear(x, weight), some).sum().backward()
            else:
                TopLogits.of(x @ dense.T, 128)

        return counted(work)

    with patch.object(reference, "TILE", reference.TILE * reference.LAUNCHES):  # as on a GPU
        return scaled(of(4), of(8), (4, 8), positions)


@cache
def packed_head() -> FinerWeight:
    """Pack a random head to nearest."""
    form, finer = Recipe.load(DEFAULT).outside.build("outside"), torch.zeros(VOCAB).bool()
    finer[: form.finer_rows(VOCAB)] = True
    dice = torch.Generator().manual_seed(0)
    return form.quantize(torch.randn(VOCAB, WIDTH, generator=dice), finer)


def fixed(name: str, dtype: torch.dtype | str, flops: float, moved: float = 0.0) -> list[Call]:
    """Write down a product whose size is known."""
    return [Call(name, dtype, float(flops), float(moved))]


Phase = tuple[str, list[Call], float]
"""Its name, its calls, and how often they are made."""


def untuned() -> Iterator[Phase]:
    """Yield the phases in front of tuning."""
    calibration, precision, quantizer = Recipe.load(DEFAULT).build()
    streams = 2 if Needs.DRIFT in quantizer.needs else 1
    tokens, some, full = calibration.sequences * calibration.length, precision.tokens, torch.float32
    plain = block(False).requires_grad_(False)
    squares = sum(n * m**2 for m, n in INPUTS.items())
    weighed = sum(n * m**2 for (_, m), n in LAYERS.items())
    cubes = sum(n * m**3 for m, n in INPUTS.items())
    all_cubes = sum(n * m**3 for (_, m), n in LAYERS.items())
    there = passing(plain, 4096, False) + attention(4096, 1)
    back = passing(plain, 4096, True) + attention(4096, 3)
    # what does not fit into a gigabyte of waiting states starts anew in front of each stage
    again = (4 * 3 * WIDTH**2 + 3 * WIDTH**2 + 2 * 2 * WIDTH * MLP + MLP * WIDTH) / WEIGHTS
    yield "sensitivity: passes", there + back, BLOCKS * some / 4096
    moments = fixed("addmm", full, 2.0 * some * (squares + weighed))
    yield "sensitivity: moments", moments + fixed("factor", full, (4 / 3 + 2) * all_cubes), BLOCKS
    yield "calibration: passes", there, BLOCKS * tokens / 4096 * again * streams
    moments = fixed("addmm", TF32, 2.0 * tokens * squares * streams)
    factors = fixed("factor", full, 4 / 3 * cubes)
    yield "calibration: moments", moments + factors, BLOCKS
    for (out, inputs), n in LAYERS.items():
        yield f"rounding: {out} × {inputs}", rounding(out, inputs), BLOCKS * n
    seen = fixed("addmm", TF32, 2.0 * tokens / 2 * WIDTH**2 * streams)
    yield "head: moments", seen + fixed("factor", full, 4 / 3 * WIDTH**3), 1
    yield "head: rounding", rounding_head(TILE * LAUNCHES // WIDTH), VOCAB * WIDTH / TILE / LAUNCHES


def tuned_blocks() -> Iterator[Phase]:
    """Yield the phases of tuning each block by itself."""
    recipe = Recipe.load(DEFAULT)
    calibration, how = recipe.build()[0], recipe.block_tuning.build("block_tuning")
    pieces = calibration.sequences * calibration.length / BATCH_TOKENS
    made = block(True)
    back = passing(made, BATCH_TOKENS, True) + attention(BATCH_TOKENS, 3)
    updates = how.passes * (1 - how.validation) * pieces
    yield "tuning: blocks, updates", back, BLOCKS * updates
    there = passing(made, BATCH_TOKENS, False) + attention(BATCH_TOKENS, 1)
    yield "tuning: blocks, looks", there, BLOCKS * (how.passes + 1) * how.validation * pieces
    yield "tuning: blocks, Adam", fixed("adam", torch.float32, 0, 28 * SCALES), BLOCKS * updates


def tuned() -> Iterator[Phase]:
    """Yield the phases of tuning end to end."""
    how = Recipe.load(DEFAULT).tuning.build("tuning")
    parts = how.steps * how.batch * how.length / PART_TOKENS
    looks = how.validation * (1 + how.steps // how.validate_every) * how.length / PART_TOKENS
    heads = PART_TOKENS / 2 / HEAD_ROWS
    yield "tuning: Adam", fixed("adam", torch.float32, 0, 28 * BLOCKS * SCALES), how.steps
    plain = block(False).requires_grad_(False)
    there = passing(plain, PART_TOKENS, False) + attention(PART_TOKENS, 1)
    yield "tuning: 16-bit model", there, BLOCKS * (parts + how.validation)
    back = passing(block(True, again=True), PART_TOKENS, True) + attention(PART_TOKENS, 4)
    yield "tuning: packed model", back, BLOCKS * (parts + looks / 3)
    yield "tuning: 16-bit head", head(HEAD_ROWS, False), heads * (parts + how.validation)
    yield "tuning: packed head, loss", head(HEAD_ROWS, True), heads * (parts + looks / 3)


def read_seconds() -> dict[str, float]:
    """Tell the seconds of reading weights: hashed and read before rounding, again in tuning."""
    how = Recipe.load(DEFAULT).tuning.build("tuning")
    size = 2.0 * (BLOCKS * WEIGHTS + 2 * VOCAB * WIDTH)
    visits = 1 + how.steps / max(1, min(how.round, VISIT_TOKENS // (how.batch * how.length)))
    return {"reading weights": 4 * size / DISK, "tuning: reading weights": visits * size / DISK}
