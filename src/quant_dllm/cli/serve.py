"""``quant-dllm serve``."""

from typing import Annotated

import typer

from quant_dllm.cli.options import AttentionBlock, Device, MaskTokenId, Model


def serve(
    model: Model,
    host: Annotated[str, typer.Option(help="Address; this machine alone if not given.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="Port; 0: any that is free.")] = 8000,
    name: Annotated[
        str | None, typer.Option(help="What clients call the model; its own name if absent.")
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(envvar="QUANT_DLLM_API_KEY", help="What clients must send; none if absent."),
    ] = None,
    queue: Annotated[int, typer.Option(min=0, help="Answers that may wait.")] = 128,
    timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds for an answer, waiting included.")
    ] = 600.0,
    max_body: Annotated[int, typer.Option(min=1, help="Bytes of a request, at most.")] = 1 << 20,
    device: Device = "cpu",
    mask_token_id: MaskTokenId = None,
    attention_block: AttentionBlock = None,
) -> None:
    """Answer OpenAI clients over HTTP, and show denoising live on one page.

    Example: quant-dllm serve tiny-2bit --port 8000
    """
    from importlib.util import find_spec
    from pathlib import PurePath

    from quant_dllm.errors import RequestError

    if any(find_spec(needed) is None for needed in ("fastapi", "uvicorn", "prometheus_client")):
        raise RequestError(
            "Serving needs FastAPI and uvicorn, which are not installed. "
            "Run: pip install 'quant-dllm[serve]'"
        )
    if api_key == "":
        raise RequestError(
            "--api-key is empty, which would let everybody in. Give a key, or leave the option out."
        )
    from quant_dllm.cli.listen import bound, listen
    from quant_dllm.generation.generate import begin
    from quant_dllm.models.load import fill, unloaded, usable_device
    from quant_dllm.server.app import application
    from quant_dllm.server.engine import Engine
    from quant_dllm.server.guard import Guard

    target = usable_device(device)
    opened = unloaded(model, mask_token_id=mask_token_id, attention_block=attention_block)
    begin(opened, "a", {}, length=1)  # refuses a model that could answer nobody
    called = name or (PurePath(model).name if PurePath(model).is_absolute() else model)
    with bound(host, port) as address:
        engine = Engine(fill(opened, device=target), called, queue=queue, timeout=timeout)
        listen(application(engine, Guard(api_key, max_body)), called, address)
