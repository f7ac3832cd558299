"""What LLaDA-8B takes by its shapes alone: bits of the whole file, memory on the device.

python benchmarks/shapes.py      # adds records to benchmarks/results/cost.jsonl
"""

import json
from typing import Any

import records
from cost import RESULTS
from phases import BLOCKS, LAYERS, MLP, SCALES, VOCAB, WEIGHTS, WIDTH
from quant_dllm.pipeline.entry import BATCH_TOKENS
from quant_dllm.pipeline.stream import HELD_BYTES
from quant_dllm.pipeline.tune import NARROW, PART_TOKENS, VISIT_TOKENS, WIDE
from quant_dllm.quantizers.outside import LAUNCHES, Grouped
from quant_dllm.quantizers.outside import TILE as ROWS
from quant_dllm.recipe import DEFAULT, Recipe
from quant_dllm.tuning.objective import HEAD_ROWS
from quant_dllm.tuning.scales import TILE

PARAMETERS = BLOCKS * WEIGHTS + 2 * VOCAB * WIDTH + (2 * BLOCKS + 1) * WIDTH
RECIPES = ("quant-dllm-2bit-paper", "ablation-tuned-outside-8", "quant-dllm-2bit")


def file_bits(name: str) -> dict[str, Any]:
    """Add up the weight files of a recipe of two planes a block: layers, outside, norms."""
    recipe = Recipe.load(name)
    quantizer, form = recipe.quantizer.build("quantizer"), recipe.outside.build("outside")
    layers = BLOCKS * sum(
        n * inputs // 128 * (2 * quantizer.plane_bits(out, 128) + 8)
        for (out, inputs), n in LAYERS.items()
    )
    packed = isinstance(form, Grouped)
    each = 8 * form.stored_bytes(VOCAB, WIDTH) / (VOCAB * WIDTH) if packed else 16
    outside = 2 * VOCAB * WIDTH * each
    total = layers + outside + 16 * (2 * BLOCKS + 1) * WIDTH
    return {
        "what": "file bits", "model": "LLaDA-8B's shapes", "recipe": name,
        "stored_bits": layers / (BLOCKS * WEIGHTS), "outside_bits": each,
        "file_bits": total / PARAMETERS,
    } | records.where()  # fmt: skip


FORM = Recipe.load(DEFAULT).outside.build("outside")
PACKED = {
    "packed embedding and head": 2.0 * FORM.stored_bytes(VOCAB, WIDTH),
    "packed layers": BLOCKS * WEIGHTS * 2.2 / 8,
}
OUTSIDE = 2.0 * 2 * VOCAB * WIDTH
KEPT = NARROW * WIDTH + WIDE * MLP  # numbers a token that a block has at once


def rounding() -> dict[str, float]:
    """Add up what is on the device while the layer of most inputs is refined, bytes."""
    return {
        "packed embedding and head": PACKED["packed embedding and head"],
        "block, 16-bit and float32": 6.0 * WEIGHTS,
        "hidden states, both models'": 2.0 * HELD_BYTES,
        "second moment, factor or damped H, drift": 3 * 4.0 * MLP**2,
        "columns' equations": 4.0 * (2 * MLP) ** 2 + 8.0 * MLP * WIDTH,
        "the layer's copies": 5 * 4.0 * WIDTH * MLP,
    }


def tuned_block() -> dict[str, float]:
    """Add up what is there while one block is tuned by itself."""
    return {
        "block, 16-bit and float32": 2 * 2.0 * WEIGHTS,  # as it was, and as it is
        "packed layers": WEIGHTS * 2.2 / 8,
        "scales, changes, gradients, Adam, best": 24.0 * SCALES,
        "a block on its way": 4.0 * BATCH_TOKENS * KEPT + 2.0 * WEIGHTS,
        "a layer's dense weight, gradient and planes": 3 * 4.0 * WIDTH * MLP + 3 * 4.0 * TILE,
    }


def head() -> dict[str, float]:
    """Add up what is there while the head is rounded, behind the blocks."""
    return {
        "16-bit head": 2.0 * VOCAB * WIDTH,
        "its codes": 1.0 * VOCAB * WIDTH,
        "second moment, factor, drift": 3 * 4.0 * WIDTH**2,
        "the rows' copies": 8 * 4.0 * ROWS * LAUNCHES,
    }


def update() -> dict[str, float]:
    """Add up a part of the packed model's update; the 16-bit model is gone by then."""
    return PACKED | {
        "scales, changes, gradients, Adam, best": 24.0 * BLOCKS * SCALES,
        "targets of a visit": VISIT_TOKENS / 2 * 128 * 6.0,
        "inputs of all blocks": 2.0 * PART_TOKENS * WIDTH * BLOCKS,
        "a block on its way": 4.0 * PART_TOKENS * KEPT + 2.0 * WEIGHTS,
        "a layer's dense weight, gradient and planes": 3 * 4.0 * WIDTH * MLP + 3 * 4.0 * TILE,
        "logits": 5 * 4.0 * HEAD_ROWS * VOCAB,
    }


def visit() -> dict[str, float]:
    """Add up what is there while the 16-bit model is asked, block by block."""
    return PACKED | {
        "scales, changes, gradients, Adam, best": 20.0 * BLOCKS * SCALES,
        "16-bit embedding and head": OUTSIDE,
        "block, 16-bit and float32": 2.0 * WEIGHTS,
        "hidden states": 2.0 * VISIT_TOKENS * WIDTH,
        "a block on its way": 2.0 * BATCH_TOKENS * KEPT,
        "logits": 3 * 4.0 * HEAD_ROWS * VOCAB,
    }


def memory() -> dict[str, Any]:
    """Add up the fullest moments, bytes."""
    stages = {
        "rounding": rounding(),
        "block tuning": tuned_block(),
        "head": head(),
        "tuning": update(),
        "tuning, 16-bit model": visit(),
    }
    return {"what": "memory", "model": "LLaDA-8B's shapes"} | stages | records.where()


def main() -> None:
    """Record both."""
    for record in (*map(file_bits, RECIPES), memory()):
        print(json.dumps(record))
        with RESULTS.open("a") as file:
            records.append(file, record)


if __name__ == "__main__":
    main()
