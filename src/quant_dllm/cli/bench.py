"""``quant-dllm bench``."""

from typing import Annotated

import typer

from quant_dllm.cli.options import AsJson, Device


def bench(
    model: Annotated[
        str | None, typer.Argument(help="A folder, 'tiny', or a Hugging Face id; or --shape.")
    ] = None,
    shape: Annotated[
        str | None, typer.Option(help="Random weights of a published model: llada-8b.")
    ] = None,
    layers: Annotated[
        int | None, typer.Option(min=1, help="Blocks of the shape; all if absent.")
    ] = None,
    order: Annotated[int, typer.Option(min=1, help="Planes of random packed weights.")] = 2,
    length: Annotated[
        list[int] | None, typer.Option(min=1, help="Tokens of a canvas; give it again for each.")
    ] = None,
    runs: Annotated[int, typer.Option(min=1, help="Timed calls of each.")] = 5,
    dtype: Annotated[str, typer.Option(help="bfloat16, float16, float32: of both.")] = "bfloat16",
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Time a model at 16 bits and packed, and weigh what it takes in memory.

    Example: quant-dllm bench tiny --length 64
    """
    import torch

    from quant_dllm.cli.show import print_facts, print_json, print_table, size, track
    from quant_dllm.errors import RequestError
    from quant_dllm.evaluation.speed import measure

    kinds = {name: getattr(torch, name) for name in ("bfloat16", "float16", "float32")}
    if dtype not in kinds:
        raise RequestError(f"Unknown dtype {dtype!r}. Known: {', '.join(kinds)}.")
    found = measure(
        model, shape=shape, layers=layers, order=order, lengths=length or (32, 128, 512),
        runs=runs, dtype=kinds[dtype], device=device, track=track,
    )  # fmt: skip
    if as_json:
        print_json(found.to_dict())
        return
    dense = [t for t in found.timings if t.network == "dense"]
    packed = [t for t in found.timings if t.network == "packed"]
    rows = [
        (str(a.length), *(f"{t.seconds:.3f} ± {t.spread:.3f}" for t in (a, b)),
         f"{a.seconds / b.seconds:.2f}", *(f"{t.tokens_per_second:.1f}" for t in (a, b)),
         *(f"{t.head:.3f}" for t in (a, b)))
        for a, b in zip(dense, packed, strict=True)
    ]  # fmt: skip
    print_table(
        f"{found.model}, {found.dtype}, {found.device}, {found.threads} threads: median and "
        f"interquartile range of {found.runs} calls",
        ("canvas", f"{found.dtype} s a call", "packed s a call", "times", f"{found.dtype} tokens/s",
         "packed tokens/s", f"{found.dtype} head s", "packed head s"),
        rows,
    )  # fmt: skip
    share = found.weight_bytes["packed"] / found.weight_bytes["dense"]
    print_facts(
        {
            "packed layers": f"{size(found.weight_bytes['packed'])} resident, {share:.3f} of "
            f"{size(found.weight_bytes['dense'])}",
            "whole model": f"{size(found.model_bytes['packed'])} resident, of "
            f"{size(found.model_bytes['dense'])}",
        }
    )
