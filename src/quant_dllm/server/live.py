"""The page that shows an answer while it is denoised."""

from quant_dllm.generation.chat import has_chat_template
from quant_dllm.report.page import asset, embedded, template
from quant_dllm.server.engine import Engine


def live_page(engine: Engine, needs_key: bool) -> str:
    """Write the page of one server: its model, its limits, its family's settings."""
    model, sampling = engine.model, engine.model.family.sampling
    context, packed = model.source.config.context, model.source.folder.quantization is not None
    bits = f"{model.source.folder.manifest['bits']['code']:.2g} bits" if packed else "16 bits"
    length = min(128, context // 2)
    known = {
        "model": engine.name, "chat": has_chat_template(model.tokenizer), "context": context,
        "length": length, "block": min(sampling.block_length or 32, length),
        "temperature": sampling.temperature, "needsKey": needs_key,
    }  # fmt: skip
    return template("live.html.j2").render(
        name=engine.name, bits=bits, family=model.family.name, context=context,
        style=asset("page.css"), script=asset("player.js"), live=asset("live.js"),
        known=embedded(known), needs_key=needs_key, chat=known["chat"], length=length,
        block=known["block"], temperature=sampling.temperature or 0.0,
    )  # fmt: skip
