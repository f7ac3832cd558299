"""``quant-dllm report``."""

from pathlib import Path
from typing import Annotated

import typer

from quant_dllm.cli.options import AsJson, Device, Seed, Text


def report(
    out: Annotated[Path, typer.Argument(help="A folder that quant-dllm quantize made.")],
    against: Annotated[
        str | None,
        typer.Option(metavar="BASE", help="The 16-bit model; the one it was made from if absent."),
    ] = None,
    measure: Annotated[
        bool, typer.Option(help="Measure and write texts; else draw what is known again.")
    ] = True,
    text: Text = None,
    prompt: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="What both models write on from.")
    ] = None,
    length: Annotated[int, typer.Option(min=1, help="Tokens of each text.")] = 64,
    temperature: Annotated[float | None, typer.Option(help="Of the texts.")] = None,
    sequences: Annotated[int, typer.Option(min=1, help="Windows of held-out text.")] = 32,
    compared: Annotated[
        Path | None, typer.Option(metavar="DIR", help="What quant-dllm compare -o DIR kept.")
    ] = None,
    device: Device = "cpu",
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Write report.html and the model card: what was done, how good it is, texts of both models.

    Example: quant-dllm report tiny-2bit --temperature 0.7
    """
    import json

    from quant_dllm.cli.show import print_facts, print_json, size, track
    from quant_dllm.evaluation.story import add_comparison
    from quant_dllm.evaluation.story import measure as run
    from quant_dllm.pipeline.leave import CARD, PAGE, gather, leave, write
    from quant_dllm.report.findings import FILE

    gather(out)  # refuse before any work
    if compared:
        add_comparison(out, compared)
    if measure:
        found = run(
            out, against, text, prompts=prompt or (), length=length, temperature=temperature,
            sequences=sequences, device=device, seed=seed, track=track,
        )  # fmt: skip
        write(out / FILE, json.dumps(found.to_dict(), ensure_ascii=False) + "\n")
    leave(out)
    page = out / PAGE
    if as_json:
        print_json({"page": str(page), "card": str(out / CARD), "bytes": page.stat().st_size})
        return
    print_facts({"page": f"{page} ({size(page.stat().st_size)})", "card": str(out / CARD)})
