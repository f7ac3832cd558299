"""``quant-dllm chat``."""

from typing import Annotated

import typer

from quant_dllm.cli.options import AttentionBlock, Device, MaskTokenId, Model, Seed


def chat(
    model: Model,
    length: Annotated[
        int | None, typer.Option(min=1, help="Tokens of an answer; 128 if absent.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Model calls to plan for; one a token if absent.")
    ] = None,
    block_length: Annotated[
        int | None, typer.Option(min=1, help="Tokens of a block, finished before the next.")
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="0 takes the likeliest token.")] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Write all tokens at once that are this probable.")
    ] = None,
    system: Annotated[
        str | None, typer.Option(metavar="TEXT", help="What the model is told first.")
    ] = None,
    seed: Seed = 0,
    device: Device = "cpu",
    mask_token_id: MaskTokenId = None,
    attention_block: AttentionBlock = None,
) -> None:
    """Talk with a model; its answers denoise before your eyes. Ctrl-C stops one, Ctrl-D all.

    A base model, which was taught no turns, writes on from each line. Piped, one answer a line of
    input is printed when it is whole.

    Example: quant-dllm chat tiny-2bit --temperature 0.7 --block-length 16
    """
    from quant_dllm.cli.talk import Talk
    from quant_dllm.generation.generate import checked
    from quant_dllm.models.load import fill, unloaded, usable_device

    settings = checked(
        {"steps": steps, "block_length": block_length, "temperature": temperature,
         "threshold": threshold}
    )  # fmt: skip
    target = usable_device(device)
    opened = unloaded(model, mask_token_id=mask_token_id, attention_block=attention_block)
    talk = Talk(opened, settings, length=length, system=system, seed=seed)
    talk.check()
    fill(opened, device=target)
    talk.run()
