"""``quant-dllm generate``."""

from typing import Annotated

import typer

from quant_dllm.cli.options import AsJson, Device, MaskTokenId, Model, Seed


def generate(
    model: Model,
    prompt: Annotated[str, typer.Option(metavar="TEXT", help="Text that the answer follows.")],
    length: Annotated[int, typer.Option(help="Tokens to write.")] = 128,
    steps: Annotated[int | None, typer.Option(help="Model calls; default: one a token.")] = None,
    block_length: Annotated[
        int | None, typer.Option(help="Tokens of a block; default: 32, or all.")
    ] = None,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.")] = 0.0,
    seed: Seed = 0,
    device: Device = "cpu",
    mask_token_id: MaskTokenId = None,
    as_json: AsJson = False,
) -> None:
    """Write on from a prompt."""
    import sys

    from quant_dllm.cli.show import print_json, track
    from quant_dllm.generation.generate import generate as run

    found = run(
        model, prompt, length=length, steps=steps, block_length=block_length,
        temperature=temperature, seed=seed, device=device, mask_token_id=mask_token_id,
        track=track,
    )  # fmt: skip
    if as_json:
        print_json(found.to_dict())
        return
    print(prompt + found.text)
    print(
        f"{found.calls} model calls, {length} tokens, {found.seconds:.1f} s "
        f"({length / max(found.seconds, 1e-9):.1f} tokens/s)",
        file=sys.stderr,
    )
