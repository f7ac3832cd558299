"""``quant-dllm generate``."""

from typing import Annotated

import typer

from quant_dllm.cli.options import AsJson, AttentionBlock, Device, MaskTokenId, Model, Seed


def generate(
    model: Model,
    prompt: Annotated[
        str, typer.Option(metavar="TEXT", help="Text that the answer follows, a token or more.")
    ],
    length: Annotated[int, typer.Option(min=1, help="Tokens to write.")] = 128,
    chat: Annotated[
        bool, typer.Option("--chat", help="The text is a user's turn, for the chat template.")
    ] = False,
    sampler: Annotated[
        str | None,
        typer.Option(help="What is written first: confidence, entropy, margin or random."),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Model calls to plan for; one a token if absent.")
    ] = None,
    block_length: Annotated[
        int | None, typer.Option(min=1, help="Tokens of a block, finished before the next.")
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="0 takes the likeliest token.")] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Draw from the likeliest tokens of this probability.")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Write all tokens at once that are this probable.")
    ] = None,
    editing: Annotated[
        float | None, typer.Option(help="Replace written tokens by others this probable.")
    ] = None,
    cfg: Annotated[
        float | None, typer.Option(help="Weight of classifier-free guidance; twice the calls.")
    ] = None,
    cache: Annotated[
        str | None,
        typer.Option(help="none; exact (block-causal models); prefix, dual (others, approximate)."),
    ] = None,
    stream: Annotated[
        bool, typer.Option("--stream", help="Show the text as it is denoised.")
    ] = False,
    seed: Seed = 0,
    device: Device = "cpu",
    mask_token_id: MaskTokenId = None,
    attention_block: AttentionBlock = None,
    as_json: AsJson = False,
) -> None:
    """Write on from a prompt; what is not given is as the model's authors draw from it.

    Example: quant-dllm generate tiny --prompt "Once upon a time" --stream
    """
    import sys

    from quant_dllm.cli.show import canvas_shower, print_json, track
    from quant_dllm.generation.generate import checked, ready
    from quant_dllm.generation.generate import generate as run
    from quant_dllm.track import silent

    settings = checked(
        {
            "remasking": sampler, "steps": steps, "block_length": block_length,
            "temperature": temperature, "top_p": top_p, "threshold": threshold,
            "editing": editing, "guidance": cfg, "cache": cache,
        }
    )  # fmt: skip
    loaded = ready(
        model, prompt, settings, device=device, mask_token_id=mask_token_id,
        attention_block=attention_block, length=length, chat=chat,
    )  # fmt: skip
    with canvas_shower(loaded.tokenizer, loaded.mask_token_id, stream) as show:
        found = run(
            loaded, prompt, length=length, chat=chat, seed=seed, on_step=show,
            track=silent if stream else track, **settings,
        )  # fmt: skip
    if as_json:
        print_json(found.to_dict())
        return
    print(found.text.strip() if chat else prompt + found.text)
    count = len(found.token_ids)
    print(
        f"{found.calls} model calls, {count} tokens, {found.seconds:.1f} s "
        f"({count / max(found.seconds, 1e-9):.1f} tokens/s)",
        file=sys.stderr,
    )
