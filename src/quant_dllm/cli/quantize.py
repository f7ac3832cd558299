"""``quant-dllm quantize``."""

from pathlib import Path
from typing import Annotated

import typer

from quant_dllm.cli.options import AsJson, AttentionBlock, Device, MaskTokenId, Model, Seed
from quant_dllm.errors import RecipeError
from quant_dllm.recipe import DEFAULT


def quantize(
    model: Model,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to make.")],
    recipe: Annotated[
        str, typer.Option("-r", "--recipe", help="Name of a preset, or a YAML file.")
    ] = DEFAULT,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PATH=VALUE", help="Change a field: precision.ratio=0.1"),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(help="UTF-8 text, plain or .gz; the bundled stories for tiny."),
    ] = None,
    seed: Seed = 0,
    device: Device = "cpu",
    mask_token_id: MaskTokenId = None,
    attention_block: AttentionBlock = None,
    as_json: AsJson = False,
) -> None:
    """Quantize a model and write the packed checkpoint, its page report.html and its model card.

    Example: quant-dllm quantize tiny -o tiny-2bit
    """
    from quant_dllm.checkpoint.folder import Folder
    from quant_dllm.cli.show import print_facts, print_json, size
    from quant_dllm.cli.watch import watching
    from quant_dllm.pipeline.quantize import quantize as run

    record = run(
        model, out, recipe, settings=parse_settings(set_ or []), calibration=calibration,
        seed=seed, device=device, mask_token_id=mask_token_id, attention_block=attention_block,
        track=watching(model, attention_block),
    )  # fmt: skip
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
            "time": f"{record.seconds:.1f} s",
            "peak memory": size(record.peak_memory)
            + (f", {size(record.peak_device_memory)} on {device}" if device != "cpu" else ""),
        }
    )


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
            raise RecipeError(f"--set {word!r} is not path=value, as in precision.ratio=0.1.")
        try:
            parsed[path.strip()] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise RecipeError(f"--set {word!r}: {value!r} is no YAML value.") from None
    return parsed
