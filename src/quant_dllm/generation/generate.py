"""From a prompt to a text."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quant_dllm.errors import RequestError, hint
from quant_dllm.generation.chat import chat_prompt
from quant_dllm.generation.draft import Draft, check_tokenizer
from quant_dllm.models.load import fill, unloaded, usable_device
from quant_dllm.models.model import DiffusionLM
from quant_dllm.models.sampling import Sampling
from quant_dllm.track import Track, silent


@dataclass(frozen=True, kw_only=True)
class Generation:
    """What was written, and what it took.

    Attributes:
        prompt: What the model was given: with ``chat``, the whole turn.
        text: The answer, up to the first token that ends it.
        token_ids: All tokens that were written, behind that token too.
        calls: Calls of the model; guidance makes two a step.
        positions: Positions that went through the model's blocks, over all calls.
        sampling: The settings.
    """

    prompt: str
    text: str
    token_ids: list[int]
    calls: int
    positions: int
    seconds: float
    sampling: Sampling

    def to_dict(self) -> dict[str, Any]:
        """Return JSON's types."""
        return asdict(self)


def generate(
    model: str | Path | DiffusionLM,
    prompt: str,
    *,
    length: int = 128,
    chat: bool = False,
    stop: bool = True,
    seed: int = 0,
    device: str | torch.device = "cpu",
    mask_token_id: int | None = None,
    attention_block: int | None = None,
    on_step: Callable[[Tensor], None] | None = None,
    track: Track = silent,
    **settings: Any,
) -> Generation:
    """Write on from a prompt.

    Args:
        model: A model, or what `load` takes.
        prompt: Text that the answer follows.
        length: Tokens to write.
        chat: Whether the prompt is a user's turn, for the tokenizer's chat template.
        stop: Whether to stop behind the block in which the answer ends.
        seed: Seed of the draws: equal seeds give equal texts.
        device: Where to load a model given by name.
        mask_token_id: The mask token, where the model's folder does not say.
        attention_block: See `open_model`.
        on_step: Called with the canvas [1, tokens] after every step; hidden tokens are masks.
        track: Watches the progress.
        settings: Fields of `Sampling` to change from what the family's authors use; ``None`` keeps
            theirs.

    Raises:
        RequestError: An empty prompt, numbers that do not divide, a setting that means nothing, a
            canvas longer than the model's context, no chat template.
        ModelError: The model has no tokenizer.
        QuantDLLMError: What `load` raises.
    """
    settings = checked(settings)
    told = {"length": length, "chat": chat, "stop": stop, "seed": seed}
    if not isinstance(model, DiffusionLM):
        model = ready(
            model, prompt, settings, device=device, mask_token_id=mask_token_id,
            attention_block=attention_block, **told,
        )  # fmt: skip
    draft = begin(model, prompt, settings, **told)
    for canvas in track(draft.steps(), "denoising", draft.planned):
        if on_step:
            on_step(canvas)
    return Generation(
        prompt=draft.prompt,
        text=draft.text,
        token_ids=draft.token_ids,
        calls=draft.denoiser.calls,
        positions=draft.denoiser.positions,
        seconds=round(draft.seconds, 2),
        sampling=draft.sampling,
    )


def ready(
    model: str | Path,
    prompt: str,
    settings: dict[str, Any],
    *,
    device: str | torch.device = "cpu",
    mask_token_id: int | None = None,
    attention_block: int | None = None,
    **told: Any,
) -> DiffusionLM:
    """Load a model for an answer; refuse what cannot be written before the weights are read.

    Raises:
        QuantDLLMError: See `generate`.
    """
    target = usable_device(device)
    opened = unloaded(model, mask_token_id=mask_token_id, attention_block=attention_block)
    begin(opened, prompt, settings, **told)
    return fill(opened, device=target)


def begin(
    model: DiffusionLM,
    prompt: str,
    settings: dict[str, Any],
    *,
    length: int,
    chat: bool = False,
    stop: bool = True,
    seed: int = 0,
    watched: bool = False,
) -> Draft:
    """Lay out an answer; of a model without weights, that says whether it could be written.

    Raises:
        RequestError, ModelError: See `generate`.
    """
    sampling = chosen_sampling(model, length, settings)
    if chat:
        check_tokenizer(model)
        prompt = chat_prompt(model.tokenizer, prompt, model.source.name)
    return Draft.begin(
        model, prompt, sampling, length=length, seed=seed, stop=stop, watched=watched
    )


def checked(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that are given; check them as far as that needs no model.

    Raises:
        RequestError: A setting that there is not, or that means nothing.
    """
    known = [field.name for field in fields(Sampling)]
    for name in settings:
        if name not in known:
            raise RequestError(
                f"Unknown setting {name!r}.{hint(name, known)} Known: {', '.join(known)}."
            )
    given = {name: value for name, value in settings.items() if value is not None}
    Sampling(**given)
    return given


def chosen_sampling(model: DiffusionLM, length: int, given: dict[str, Any]) -> Sampling:
    """Change the family's settings; its block becomes the answer where it does not divide it."""
    theirs, block = model.family.sampling, model.source.config.attention_block
    if not block and theirs.block_length and length % theirs.block_length:
        theirs = replace(theirs, block_length=None)
    if block and theirs.block_length and block % theirs.block_length:
        theirs = replace(theirs, block_length=None)
    if theirs.cache == "exact" and not block:  # told to see everything after all
        theirs = replace(theirs, cache="none")
    return replace(theirs, **given)
