"""Denoise a canvas block after block, the surest tokens first.

Every step is one call of the model. Within the active block the step predicts each hidden token,
keeps its quota of the predictions in which the model is surest and, with a threshold, every other
that is sure enough, and leaves the rest masked. With one block as long as the answer this is plain
diffusion; with several it is semi-autoregressive.

Under full attention blocks are counted from the end of the prompt and only order the writing. A
block-causal model's are counted from position 0, so that the prompt may share its last block with
the answer, and the canvas is whole blocks.

References: Nie et al., "Large Language Diffusion Models", arXiv:2502.09992, section 2.4; Wu et al.,
"Fast-dLLM", arXiv:2505.22618, section 3.3, for the threshold.
"""

from collections.abc import Iterator, Set
from itertools import pairwise
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from quant_dllm.errors import RequestError
from quant_dllm.generation.choose import certainty, choose, kept
from quant_dllm.models.sampling import Sampling

EDITS = 16  # calls that a finished block may still be edited in, LLaDA 2.1's max_post_steps


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
    for name, value in (("length", length), ("steps", steps), ("block length", block_length)):
        if value < 1:
            raise RequestError(f"{name} is {value}; 1 or more is wanted.")
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


def plan(
    start: int, length: int, sampling: Sampling, attention_block: int | None
) -> list[tuple[slice, int]]:
    """Cut the answer into blocks; return the positions of each and the calls that it may take.

    Args:
        start: Tokens of the prompt.
        length: Tokens to write; a block-causal model writes its last block to the end.
        sampling: Settings.
        attention_block: Length of block-causal attention.

    Raises:
        RequestError: The numbers do not divide into whole blocks.
    """
    size = sampling.block_length or attention_block or length
    steps = sampling.steps or length
    if not attention_block:
        check_schedule(length, steps, size)
        starts = range(start, start + length, size)
        return [(slice(at, at + size), steps * size // length) for at in starts]
    if min(length, steps, size) < 1 or (size % attention_block and attention_block % size):
        raise RequestError(
            f"length {length}, steps {steps}, block length {size}: at least 1 is wanted, and a "
            f"block length that divides or multiplies the model's attention block {attention_block}"
        )
    whole = max(size, attention_block)
    stop = -(-(start + length) // whole) * whole
    edges = [start, *range((start // size + 1) * size, stop + 1, size)]
    calls = max(1, min(size, round(steps * size / length)))
    return [(slice(a, b), min(calls, b - a)) for a, b in pairwise(edges)]


def quotas(hidden: int, steps: int) -> list[int]:
    """Spread ``hidden`` tokens over the steps; the first steps take what is left over."""
    even, rest = divmod(hidden, steps)
    return [even + (i < rest) for i in range(steps)]


@torch.no_grad()
def denoise(
    model: Denoiser,
    prompt: Int[Tensor, "batch prompt"],
    *,
    length: int,
    sampling: Sampling,
    mask_token_id: int,
    seed: int,
    attention_block: int | None = None,
    ends: Set[int] = frozenset(),
) -> Iterator[Int[Tensor, "batch canvas"]]:
    """Yield the canvas after every step; the last one is the result.

    Args:
        model: The model.
        prompt: Tokens that stay as they are.
        length: Tokens to write.
        sampling: Settings.
        mask_token_id: The mask token, which is never written.
        seed: Seed of the draws.
        attention_block: Length of block-causal attention.
        ends: Stop behind a block in which every answer has one of these tokens; what is left is
            masks.

    Raises:
        RequestError: The numbers do not divide into whole blocks.
    """
    blocks = plan(prompt.shape[1], length, sampling, attention_block)
    dice = torch.Generator().manual_seed(seed)
    batch, start = prompt.shape
    masks = torch.full((batch, blocks[-1][0].stop - start), mask_token_id, device=prompt.device)
    canvas = torch.cat((prompt, masks), dim=1)
    for block, calls in blocks:
        steps = _finish(model, canvas, block, calls, sampling, mask_token_id, dice)
        for step in steps:
            yield (canvas := step)
        if ends and _all_ended(canvas[:, start : block.stop], ends):
            return


def _all_ended(written: Int[Tensor, "batch some"], ends: Set[int]) -> bool:
    wanted = torch.tensor(sorted(ends), device=written.device)
    return bool(torch.isin(written, wanted).any(1).all())


def _finish(
    model: Denoiser,
    canvas: Int[Tensor, "batch canvas"],
    block: slice,
    calls: int,
    sampling: Sampling,
    mask_token_id: int,
    dice: torch.Generator,
) -> Iterator[Int[Tensor, "batch canvas"]]:
    """Yield the canvas after every step of one block, which is all hidden at first."""
    hidden = torch.ones_like(canvas[:, block], dtype=torch.bool)
    plan, edits = iter(quotas(block.stop - block.start, calls)), EDITS
    while (more := bool(hidden.any())) or (sampling.editing and edits):
        edits -= not more
        logits = model.predict(canvas, block)
        logits[..., mask_token_id] = -torch.inf
        tokens, confidence = choose(logits, sampling.temperature, dice, sampling.top_p)
        rank = certainty(logits, confidence, sampling, dice)
        quota = next(plan) if more else 0
        write = kept(rank, confidence, hidden, quota, sampling.threshold)
        edit = _edits(tokens, confidence, canvas[:, block], hidden, sampling)
        hidden = hidden & ~write
        canvas = canvas.clone()
        canvas[:, block] = torch.where(write | edit, tokens, canvas[:, block])
        yield canvas
        if not more and not bool(edit.any()):
            return


def _edits(
    tokens: Int[Tensor, "batch some"],
    confidence: Tensor,
    written: Int[Tensor, "batch some"],
    hidden: Bool[Tensor, "batch some"],
    sampling: Sampling,
) -> Bool[Tensor, "batch some"]:
    """Mark written tokens that the model would now write otherwise, and is sure of.

    Reference: LLaDA 2.1's token editing, in the code that comes with its checkpoints.
    """
    if not sampling.editing:
        return torch.zeros_like(hidden)
    return ~hidden & (tokens != written) & (confidence >= sampling.editing)
