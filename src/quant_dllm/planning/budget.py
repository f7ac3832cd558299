"""A budget as it is asked for, turned into a recipe: bits of the codes, or of the whole file."""

import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from quant_dllm.errors import RecipeError, RequestError
from quant_dllm.pipeline.allocation import Budget
from quant_dllm.pipeline.job import Job
from quant_dllm.planning.plan import sizes
from quant_dllm.quantizers.base import StoresPlanes
from quant_dllm.recipe import DEFAULT, Recipe

SPENT = "sensitivity"  # the policy that takes any budget
DIGITS = 6  # of bits a weight


def with_bits(recipe: Recipe, bits: float) -> Recipe:
    """Set the budget of the codes; one that is no whole number is spent by sensitivity.

    Raises:
        RecipeError: The recipe's quantizer gives every block whole bits, the same ones.
    """
    if recipe.precision.name == SPENT:
        return recipe.override({"precision.bits": float(bits)})
    if float(bits).is_integer():
        return recipe.override({"precision.bits": int(bits)})
    return _spent(recipe, f"--bits {bits:g}").override({"precision.bits": bits})


def with_file_bits(
    recipe: Recipe,
    file_bits: float,
    model: str | Path,
    *,
    calibration: Path | None = None,
    **asked: Any,
) -> Recipe:
    """Set the budget so that the weight files take at most so many bits a weight of the model.

    What scales, orders, embedding, head and the files' own headers take is read off the shapes.

    Args:
        recipe: Any that rounds to binary planes.
        file_bits: Bits over all weights of the model.
        model: A folder, ``"tiny"``, or a Hugging Face id.
        calibration: Text file.
        asked: What else `Job.prepare` takes.

    Raises:
        RequestError: Even one plane a block is more; the message holds the least.
        QuantDLLMError: What `quantize` would raise before it begins.
    """
    most = {"precision.counts": "stored", "precision.bits": 16.0}
    chosen = _spent(recipe, f"--file-bits {file_bits:g}").override(most)
    nowhere = Path(f".quant-dllm-budget-{os.getpid()}")
    job = Job.prepare(model, chosen, nowhere, text=calibration, **asked)
    budget, parameters = Budget.of(job), job.source.parameters()
    outside = 8 * sizes(job)[1]
    least = (outside + budget.plane_bits + 8 * budget.blocks) / parameters
    if not file_bits >= least:
        raise RequestError(
            f"--file-bits {file_bits:g} cannot be reached: with one plane a block {model} takes "
            f"{math.ceil(1000 * least) / 1000:.3f}, {outside / parameters:.3f} of it outside the "
            "blocks. --set outside=grouped --set outside.bits=4 packs embedding and head."
        )
    bits = (min(file_bits, 64) * parameters - outside) / budget.weights
    bits = math.floor(bits * 10**DIGITS) / 10**DIGITS
    return chosen.override({"precision.bits": bits})


def _spent(recipe: Recipe, asked: str) -> Recipe:
    """Replace the policy by the one that takes any budget; blocks stay as wide as they are."""
    _, precision, quantizer = recipe.build()
    if not isinstance(quantizer, StoresPlanes):
        raise RecipeError(
            f"{asked}: {recipe.name} gives every block the same whole bits. Name a recipe of "
            f"binary planes for it: --recipe {DEFAULT}"
        )
    if recipe.precision.name == SPENT:
        return recipe
    changed = recipe.override({"precision": SPENT, "precision.block_size": precision.block_size})
    return replace(changed, name=recipe.name)
