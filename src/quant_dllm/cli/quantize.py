"""``quant-dllm quantize``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quant_dllm.cli.options import (
    AsJson,
    AttentionBlock,
    Bits,
    Device,
    FileBits,
    Gpus,
    MaskTokenId,
    MaxMemory,
    Model,
    Seed,
)
from quant_dllm.errors import RecipeError
from quant_dllm.recipe import DEFAULT

if TYPE_CHECKING:
    from quant_dllm.recipe import Recipe
    from quant_dllm.record import RunRecord


def quantize(
    model: Model,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to make.")],
    recipe: Annotated[
        str, typer.Option("-r", "--recipe", help="Name of a preset, or a YAML file.")
    ] = DEFAULT,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PATH=VALUE", help="Change a field: quantizer.rounds=20"),
    ] = None,
    bits: Bits = None,
    file_bits: FileBits = None,
    calibration: Annotated[
        Path | None,
        typer.Option(help="UTF-8 text or .jsonl, plain or .gz; the bundled stories for tiny."),
    ] = None,
    seed: Seed = 0,
    device: Device = "cpu",
    mask_token_id: MaskTokenId = None,
    attention_block: AttentionBlock = None,
    max_memory: MaxMemory = None,
    gpus: Gpus = 1,
    as_json: AsJson = False,
) -> None:
    """Quantize a model and write the packed checkpoint, its page report.html and its model card.

    It goes on where an earlier run stopped. Example: quant-dllm quantize tiny -o tiny-2bit
    """
    from quant_dllm.cli.launch import launched, parse_size
    from quant_dllm.cli.watch import watching
    from quant_dllm.pipeline.quantize import quantize as run

    memory = parse_size(max_memory)
    asked = {"seed": seed, "device": device, "mask_token_id": mask_token_id,
             "attention_block": attention_block, "calibration": calibration}  # fmt: skip
    chosen = budgeted(model, recipe, set_, bits, file_bits, asked)
    if launched(gpus, out):
        return
    record = run(
        model, out, chosen, max_memory=memory, track=watching(model, attention_block), **asked
    )
    show(record, out, as_json)


def resume(
    out: Annotated[Path, typer.Argument(help="Output folder of an unfinished run.")],
    max_memory: MaxMemory = None,
    gpus: Gpus = 1,
    as_json: AsJson = False,
) -> None:
    """Go on with a quantization that was stopped, as it was asked for.

    Example: quant-dllm resume tiny-2bit
    """
    from quant_dllm.cli.launch import launched, parse_size
    from quant_dllm.cli.watch import watching
    from quant_dllm.pipeline.journal import saved_request
    from quant_dllm.pipeline.resume import resume as run

    memory, request = parse_size(max_memory), saved_request(out)
    if not launched(gpus, out):
        track = watching(request["model"], request["attention_block"])
        show(run(out, max_memory=memory, track=track), out, as_json)


def budgeted(
    model: str, recipe: str, set_: list[str] | None, bits: float | None,
    file_bits: float | None, asked: dict[str, Any],
) -> "Recipe":  # fmt: skip
    """Return the recipe with what the command line changes in it.

    Raises:
        RequestError: Two budgets, or one that cannot be reached.
        RecipeError: Settings or a budget that the recipe cannot take.
    """
    from quant_dllm.errors import RequestError
    from quant_dllm.recipe import Recipe

    chosen = Recipe.load(recipe).override(parse_settings(set_ or []))
    if bits is None and file_bits is None:
        return chosen
    if bits is not None and file_bits is not None:
        raise RequestError(
            f"--bits {bits:g} and --file-bits {file_bits:g} are two budgets. Give one of them."
        )
    from quant_dllm.planning.budget import with_bits, with_file_bits

    if bits is not None:
        return with_bits(chosen, bits)
    assert file_bits is not None
    return with_file_bits(chosen, file_bits, model, **asked)


def show(record: "RunRecord", out: Path, as_json: bool) -> None:
    """Print what a run did; the first of several processes alone does."""
    from quant_dllm.checkpoint.folder import Folder
    from quant_dllm.cli.launch import is_first
    from quant_dllm.cli.show import print_facts, print_json, size

    if not is_first():
        return
    device = record.device
    if as_json:
        summary = {key: value for key, value in record.to_dict().items() if key != "layers"}
        print_json({"out": str(out)} | summary)
        return
    bits, errors = record.bits, [layer.error for layer in record.layers if layer.error is not None]
    print_facts(
        {
            "written": f"{out}, {out / 'report.html'} tells of it",
            "recipe": record.recipe["name"],
            "bits a weight": f"{bits.code:.3f} codes, {bits.stored:.3f} with scales, "
            f"{bits.file:.3f} of the file",
            "size on disk": size(Folder(out).total_bytes),
            "layers": str(len(record.layers)),
            "output error": f"{sum(errors) / len(errors):.2e} (mean of the layers)"
            if errors
            else "not measured",
            "block tuning": _block_tuning(record.block_tuning),
            "tuning": f"KL to 16 bits {told.curve[0]:.4f} before, {min(told.curve):.4f} after "
            "(validation text)"
            if (told := record.tuning)
            else "none",
            "time": f"{record.seconds:.1f} s",
            "peak memory": size(record.peak_memory)
            + (f", {size(record.peak_device_memory)} on {device}" if device != "cpu" else ""),
        }
    )


def _block_tuning(curves: list[list[float]]) -> str:
    """Say what tuning each block by itself brought."""
    from quant_dllm.cli.show import before_and_after

    if not curves:
        return "none"
    before, after = before_and_after(curves)
    return f"error behind a block {before:.2e} before, {after:.2e} after (mean of the blocks)"


def parse_settings(settings: list[str]) -> dict[str, object]:
    """Read ``path=value`` words; values are YAML.

    Raises:
        RecipeError: A word that is not of that form.
    """
    import yaml

    parsed = {}
    for word in settings:
        path, equals, value = word.partition("=")
        if not equals or not path:
            raise RecipeError(f"--set {word!r} is not path=value, as in quantizer.rounds=20.")
        try:
            parsed[path.strip()] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise RecipeError(f"--set {word!r}: {value!r} is no YAML value.") from None
    return parsed
