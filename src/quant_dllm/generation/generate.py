"""From a prompt to a text."""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from quant_dllm.errors import ModelError, RequestError
from quant_dllm.generation.masked import check_schedule, denoise
from quant_dllm.models.load import load
from quant_dllm.models.model import DiffusionLM
from quant_dllm.track import Track, silent

DEFAULT_BLOCK = 32


@dataclass(frozen=True, kw_only=True)
class Generation:
    """What was written, and what it took.

    Attributes:
        text: The answer, up to the first end-of-text token.
        token_ids: All tokens of the answer, behind that token too.
        calls: Calls of the model.
    """

    prompt: str
    text: str
    token_ids: list[int]
    calls: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return JSON's types."""
        return asdict(self)


def generate(
    model: str | Path | DiffusionLM,
    prompt: str,
    *,
    length: int = 128,
    steps: int | None = None,
    block_length: int | None = None,
    temperature: float = 0.0,
    seed: int = 0,
    device: str | torch.device = "cpu",
    mask_token_id: int | None = None,
    track: Track = silent,
) -> Generation:
    """Write on from a prompt by low-confidence remasking, block after block.

    Args:
        model: A model, or what `load` takes.
        prompt: Text that the answer follows.
        length: Tokens to write.
        steps: Calls of the model; as many as tokens if not given.
        block_length: Tokens of a block; 32, or all where 32 does not divide ``length``.
        temperature: 0 takes the likeliest token (dimensionless).
        seed: Seed of the draws: equal seeds give equal texts.
        device: Where to load a model given by name.
        mask_token_id: The mask token, where the model's folder does not say.
        track: Watches the progress.

    Raises:
        RequestError: Numbers that do not divide, a temperature below zero, a canvas longer than
            the model's context.
        ModelError: The model has no tokenizer.
        QuantDLLMError: What `load` raises.
    """
    if temperature < 0:
        raise RequestError(f"temperature is {temperature}; 0 or more is wanted.")
    block = block_length or (DEFAULT_BLOCK if length % DEFAULT_BLOCK == 0 else length)
    count = steps or length
    check_schedule(length, count, block)
    if not isinstance(model, DiffusionLM):
        model = load(model, device=device, mask_token_id=mask_token_id)
    if model.tokenizer is None:
        raise ModelError(
            f"{model.source.folder.path} has no tokenizer, so that no text can be written. "
            "Copy tokenizer.json beside the weights."
        )
    ids = model.tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
    context = model.source.config.context
    if ids.shape[1] + length > context:
        raise RequestError(
            f"The prompt has {ids.shape[1]} tokens and {length} are to be written; "
            f"{model.source.name} was trained on {context} in all. Shorten one of them."
        )
    began = time.monotonic()
    canvases = denoise(
        model, ids.long().to(model.device), length=length, steps=count, block_length=block,
        temperature=temperature, mask_token_id=model.mask_token_id, seed=seed,
    )  # fmt: skip
    steps_taken = list(track(canvases, "denoising", count))
    answer = steps_taken[-1][0, ids.shape[1] :].tolist()
    return Generation(
        prompt=prompt,
        text=decode(model.tokenizer, ids[0].tolist(), answer),
        token_ids=answer,
        calls=len(steps_taken),
        seconds=round(time.monotonic() - began, 2),
    )


def decode(tokenizer: Any, prompt: list[int], answer: list[int]) -> str:
    """Return the answer up to the end of text, as it reads behind the prompt."""
    if tokenizer.eos_token_id in answer:
        answer = answer[: answer.index(tokenizer.eos_token_id)]
    before = tokenizer.decode(prompt, skip_special_tokens=True)
    return tokenizer.decode(prompt + answer, skip_special_tokens=True)[len(before) :]
