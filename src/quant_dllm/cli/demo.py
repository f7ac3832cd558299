"""``quant-dllm demo``: the whole road on the bundled model, in a few minutes on two cores."""

import tempfile
from pathlib import Path
from typing import Annotated

import typer

RECIPES = ("rtn-2bit", "gptq-2bit", "quant-dllm-2bit-paper", "quant-dllm-2bit-untuned")
TUNED = "quant-dllm-2bit"
PROMPT = "Once upon a time, there was a little girl named Lily. She"
COLUMNS = ("model", "code bits", "bits/weight", "file bits/weight", "weights on disk", "NELBO",
           "perplexity", "KL to 16-bit", "top-1", "seconds")  # fmt: skip


def demo(
    out: Annotated[
        Path | None,
        typer.Option(help="New folder to keep the checkpoints in; they are thrown away if absent."),
    ] = None,
    tuned: Annotated[
        bool, typer.Option("--tuned", help="Run the default recipe too: five minutes more.")
    ] = False,
) -> None:
    """Quantize tiny to two bits by several recipes, measure them all, and let it write.

    Example: quant-dllm demo --out demo
    """
    recipes = (*RECIPES, TUNED) if tuned else RECIPES
    if out is None:
        with tempfile.TemporaryDirectory() as folder:
            _run(Path(folder), recipes)
    else:
        _make(out)
        _run(out, recipes)


def _make(out: Path) -> None:
    """Make the folder, or refuse now and not after a minute."""
    from quant_dllm.checkpoint.writer import refuse_existing
    from quant_dllm.errors import CheckpointError

    refuse_existing(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(
            f"{out} could not be made: {error.strerror}. Name another folder."
        ) from None


def _run(out: Path, recipes: tuple[str, ...]) -> None:
    from quant_dllm.checkpoint.folder import Folder
    from quant_dllm.cli.show import print_table, size, track
    from quant_dllm.evaluation.evaluate import Yardstick, held_out
    from quant_dllm.generation.generate import generate
    from quant_dllm.models.load import load
    from quant_dllm.pipeline.quantize import quantize

    base = load("tiny")
    windows = held_out(base, None, sequences=32, length=256, seed=0)
    yardstick = Yardstick(windows=windows, base=base, draws=4, track=track)
    rows = [_row("16-bit", yardstick.measure(base), size(base.source.folder.weight_bytes), "-")]
    for recipe in recipes:
        record = quantize("tiny", out / recipe, recipe, track=track)
        found = yardstick.measure(load(out / recipe))
        disk = size(Folder(out / recipe).weight_bytes)
        rows.append(_row(recipe, found, disk, f"{record.seconds:.1f}"))
    print_table(
        f"tiny at two bits: {len(windows)} held-out windows of {windows.shape[1]} tokens, "
        "± standard error", COLUMNS, rows,
    )  # fmt: skip
    for name, model in (("16-bit", base), (recipes[-1], load(out / recipes[-1]))):
        story = generate(
            model, PROMPT, length=128, block_length=8, temperature=0.7, seed=1, track=track
        )
        print(f"{name}, {story.calls} model calls:\n{PROMPT}{story.text}\n")


def _row(name: str, found, disk: str, seconds: str) -> tuple[str, ...]:
    bits = found.bits
    return (
        name,
        f"{bits.code:.2f}",
        f"{bits.stored:.2f}",
        f"{bits.file:.2f}",
        disk,
        f"{found.nelbo:.3f} ± {found.nelbo_stderr:.3f}",
        f"{found.perplexity:.2f}",
        "-" if found.kl is None else f"{found.kl:.3f} ± {found.kl_stderr:.3f}",
        "-" if found.top1_agreement is None else f"{found.top1_agreement:.1%}",
        seconds,
    )
