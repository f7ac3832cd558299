"""Denoise a canvas block after block, the surest tokens first: LLaDA's sampler.

Every step is one call of the model on the whole canvas. Within the active block the step predicts
each hidden token, keeps the quota of predictions in which the model is surest, and leaves the rest
masked ("low-confidence remasking"). With one block as long as the answer this is plain
diffusion; with several it is semi-autoregressive, and attention still sees all.

Reference: Nie et al., "Large Language Diffusion Models", arXiv:2502.09992, section 2.4.
"""

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from quant_dllm.errors import RequestError


@runtime_checkable
class Denoiser(Protocol):
    """What the sampler needs of a model: logits at some positions of a canvas."""

    def predict(self, input_ids: Tensor, positions: slice) -> Tensor:
        """Score the tokens of some positions: logits [batch, some, vocab]."""
        ...


def check_schedule(length: int, steps: int, block_length: int) -> None:
    """Refuse numbers that do not divide into whole blocks.

    Raises:
        RequestError: Says which, and what would do.
    """
    if min(length, steps, block_length) < 1:
        raise RequestError(
            f"length {length}, steps {steps} and block length {block_length} must be at least 1."
        )
    if length % block_length:
        raise RequestError(
            f"length {length} is no multiple of block length {block_length}; "
            f"{length // block_length * block_length or block_length} would be."
        )
    blocks = length // block_length
    if steps % blocks or steps // blocks > block_length:
        raise RequestError(
            f"{steps} steps do not spread over {blocks} blocks of {block_length} tokens; a multiple"
            f" of {blocks} from {blocks} to {length} is wanted."
        )


def quotas(hidden: int, steps: int) -> list[int]:
    """Spread ``hidden`` tokens over the steps; the first steps take what is left over."""
    even, rest = divmod(hidden, steps)
    return [even + (i < rest) for i in range(steps)]


def choose(
    logits: Float[Tensor, "batch some vocab"], temperature: float, dice: torch.Generator
) -> tuple[Int[Tensor, "batch some"], Float[Tensor, "batch some"]]:
    """Draw a token for each position; return it with its probability at temperature one."""
    logits = logits.float()
    tokens = logits.argmax(-1)
    if temperature > 0:
        p = (logits / temperature).softmax(-1)
        noise = torch.empty(p.shape).exponential_(generator=dice).to(p.device)
        tokens = (p / noise).argmax(-1)  # the first of exponential clocks with rates p to ring
    confidence = logits.softmax(-1).gather(-1, tokens[..., None])[..., 0]
    return tokens, confidence


@torch.no_grad()
def denoise(
    model: Denoiser,
    prompt: Int[Tensor, "batch prompt"],
    *,
    length: int,
    steps: int,
    block_length: int,
    temperature: float,
    mask_token_id: int,
    seed: int,
) -> Iterator[Int[Tensor, "batch canvas"]]:
    """Yield the canvas after every step; the last one is the result.

    Args:
        model: The model.
        prompt: Tokens that stay as they are.
        length: Tokens to write.
        steps: Calls of the model in all.
        block_length: Tokens of a block.
        temperature: 0 takes the likeliest token (dimensionless).
        mask_token_id: The mask token, which is never written.
        seed: Seed of the draws.

    Raises:
        RequestError: The numbers do not divide into whole blocks.
    """
    check_schedule(length, steps, block_length)
    dice = torch.Generator().manual_seed(seed)
    batch, start = prompt.shape
    masks = torch.full((batch, length), mask_token_id, device=prompt.device)
    canvas = torch.cat((prompt, masks), dim=1)
    hidden = torch.zeros_like(canvas, dtype=torch.bool)
    hidden[:, start:] = True
    for at in range(start, start + length, block_length):
        block = slice(at, at + block_length)
        for quota in quotas(block_length, steps * block_length // length):
            logits = model.predict(canvas, block)
            logits[..., mask_token_id] = -torch.inf
            tokens, confidence = choose(logits, temperature, dice)
            confidence = torch.where(hidden[:, block], confidence, -torch.inf)
            keep = confidence.topk(quota, dim=1).indices
            written = canvas[:, block].scatter(1, keep, tokens.gather(1, keep))
            canvas = canvas.clone()
            canvas[:, block] = written
            hidden[:, block] = hidden[:, block].scatter(1, keep, False)
            yield canvas
