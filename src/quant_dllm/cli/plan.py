"""``quant-dllm plan``."""

from pathlib import Path
from typing import Annotated

import typer

from quant_dllm.cli.options import (
    AsJson,
    AttentionBlock,
    Bits,
    Device,
    FileBits,
    MaskTokenId,
    Model,
    Seed,
)
from quant_dllm.recipe import DEFAULT


def plan(
    model: Model,
    recipe: Annotated[
        str, typer.Option("-r", "--recipe", help="Name of a preset, or a YAML file.")
    ] = DEFAULT,
    bits: Bits = None,
    file_bits: FileBits = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PATH=VALUE", help="Change a field: quantizer.rounds=20"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Folder to make; its disk is looked at.")
    ] = None,
    calibration: Annotated[Path | None, typer.Option(help="Text to calibrate on.")] = None,
    time: Annotated[
        bool, typer.Option("--time", help="Quantize the first block to tell the time.")
    ] = False,
    seed: Seed = 0,
    device: Device = "cpu",
    mask_token_id: MaskTokenId = None,
    attention_block: AttentionBlock = None,
    as_json: AsJson = False,
) -> None:
    """Say what a quantization will give and take, and refuse now what would fail later.

    Example: quant-dllm plan tiny --bits 2 --time
    """
    from quant_dllm.cli.quantize import budgeted
    from quant_dllm.cli.show import print_facts, print_json, size
    from quant_dllm.planning.plan import plan as run

    asked = {"seed": seed, "device": device, "mask_token_id": mask_token_id,
             "attention_block": attention_block, "calibration": calibration}  # fmt: skip
    chosen = budgeted(model, recipe, set_, bits, file_bits, asked)
    found = run(model, chosen, out=out, timed=time, **asked)
    if as_json:
        print_json(found.to_dict())
        return
    b = found.bits
    facts = {
        "model": f"{found.model}: {found.family}, {found.blocks} blocks, {found.layers} layers to "
        f"quantize, {found.parameters / 1e6:,.1f} million weights",
        "recipe": found.recipe,
        "bits a weight": f"{b.code:.3f} codes, {b.stored:.3f} with scales, "
        f"{b.file:.3f} of the file",
        "weight files": f"{size(found.weight_bytes)}, of {size(found.base_bytes)}",
        "disk": size(found.disk_bytes)
        + ("" if found.disk_free is None else f", {size(found.disk_free)} free"),
        "memory": f"about {size(found.memory_bytes)}"
        + (f", the machine has {size(found.memory_there)}" if found.memory_there else ""),
        "calibration": f"{found.calibration_tokens} tokens",
        "time": "not known; --time quantizes one block to tell it"
        if found.seconds is None
        else f"about {found.seconds:.0f} s on {device}",
    }
    print_facts(facts | {f"note {i}": words for i, words in enumerate(found.warnings, start=1)})
