"""What LLaDA-8B takes by its shapes alone: bits of the whole file, memory on the device.

python benchmarks/shapes.py      # adds records to benchmarks/results/cost.jsonl
"""

import json
from typing import Any

import records
from cost import BLOCKS, LAYERS, MLP, RESULTS, VOCAB, WEIGHTS, WIDTH
from quant_dllm.pipeline.entry import BATCH_TOKENS
from quant_dllm.pipeline.stream import HELD_BYTES
from quant_dllm.pipeline.tune import NARROW, PART_TOKENS, VISIT_TOKENS, WIDE
from quant_dllm.quantizers.outside import Grouped
from quant_dllm.recipe import Recipe
from quant_dllm.tuning.objective import HEAD_ROWS
from quant_dllm.tuning.scales import TILE

PARAMETERS = BLOCKS * WEIGHTS + 2 * VOCAB * WIDTH + (2 * BLOCKS + 1) * WIDTH
RECIPES = ("quant-dllm-2bit-paper", "quant-dllm-2bit", "quant-dllm-2bit-small")


def file_bits(name: str) -> dict[str, Any]:
    """Add up the weight files of a recipe of two planes a block: layers, outside, norms."""
    recipe = Recipe.load(name)
    quantizer, form = recipe.quantizer.build("quantizer"), recipe.outside.build("outside")
    layers = BLOCKS * sum(
        n * inputs // 128 * (2 * quantizer.plane_bits(out, 128) + 8)
        for (out, inputs), n in LAYERS.items()
    )
    each = form.bits + 16 / form.block_size if isinstance(form, Grouped) else 16
    outside = 2 * VOCAB * WIDTH * each
    total = layers + outside + 16 * (2 * BLOCKS + 1) * WIDTH
    return {
        "what": "file bits", "model": "LLaDA-8B's shapes", "recipe": name,
        "stored_bits": layers / (BLOCKS * WEIGHTS), "outside_bits": each,
        "file_bits": total / PARAMETERS,
    } | records.where()  # fmt: skip


def memory() -> dict[str, Any]:
    """Add up what is on the device at the fullest moment of rounding, and of tuning, bytes."""
    square, layer, outside = 4.0 * MLP**2, 4.0 * WIDTH * MLP, 2.0 * 2 * VOCAB * WIDTH
    packed_outside = 2 * VOCAB * WIDTH * 8.125 / 8
    packed = BLOCKS * WEIGHTS * 2.2 / 8
    scales = BLOCKS * sum(n * 2 * (out * m / 128 + m) for (out, m), n in LAYERS.items())
    logits = 4.0 * HEAD_ROWS * VOCAB
    return {
        "what": "memory", "model": "LLaDA-8B's shapes",
        "rounding": {  # the layer of 12288 inputs, its columns' equations
            "packed embedding and head": packed_outside,
            "block, 16-bit and float32": 6.0 * WEIGHTS,
            "hidden states": float(HELD_BYTES),
            "second moment, factor, damped H": 3 * square,
            "columns' equations": 4.0 * (2 * MLP) ** 2 + 8.0 * MLP * WIDTH,
            "the layer's copies": 5 * layer,
        },
        "tuning": {  # a part of the packed model's update; the 16-bit model is gone by then
            "packed embedding and head": packed_outside,
            "packed layers": packed,
            "scales, changes, gradients, Adam, best": 24.0 * scales,
            "targets of a visit": VISIT_TOKENS / 2 * 128 * 6.0,
            "inputs of all blocks": 2.0 * PART_TOKENS * WIDTH * BLOCKS,
            "a block that runs again": 4.0 * PART_TOKENS * (NARROW * WIDTH + WIDE * MLP)
            + 2.0 * WEIGHTS,
            "a layer's dense weight, gradient and planes": 3 * layer + 3 * 4.0 * TILE,
            "logits": 5 * logits,
        },
        "tuning, 16-bit model": {  # a visit: a block in memory, the states of all windows
            "packed embedding and head": packed_outside,
            "packed layers": packed,
            "scales, changes, gradients, Adam, best": 20.0 * scales,
            "16-bit embedding and head": outside,
            "block, 16-bit and float32": 2.0 * WEIGHTS,
            "hidden states": 2.0 * VISIT_TOKENS * WIDTH,
            "a block on its way": 2.0 * BATCH_TOKENS * (NARROW * WIDTH + WIDE * MLP),
            "logits": 3 * logits,
        },
    } | records.where()  # fmt: skip


def main() -> None:
    """Record both."""
    for record in (*map(file_bits, RECIPES), memory()):
        print(json.dumps(record))
        with RESULTS.open("a") as file:
            records.append(file, record)


if __name__ == "__main__":
    main()
