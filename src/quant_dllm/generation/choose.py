"""Which token a hidden position gets, and which positions get theirs first."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from quant_dllm.models.sampling import Sampling


def choose(
    logits: Float[Tensor, "batch some vocab"],
    temperature: float,
    dice: torch.Generator,
    top_p: float = 1.0,
) -> tuple[Int[Tensor, "batch some"], Float[Tensor, "batch some"]]:
    """Draw a token for each position; return it with its probability at temperature one.

    Probabilities are float32: in bfloat16 ties would decide the order in which tokens are written.
    """
    logits = logits.float()
    tokens = logits.argmax(-1)
    if temperature > 0:
        p = (logits / temperature).softmax(-1)
        p = nucleus(p, top_p) if top_p < 1 else p
        noise = torch.empty(p.shape).exponential_(generator=dice).to(p.device)
        tokens = (p / noise).argmax(-1)  # the first of exponential clocks with rates p to ring
    confidence = logits.softmax(-1).gather(-1, tokens[..., None])[..., 0]
    return tokens, confidence


def nucleus(
    p: Float[Tensor, "batch some vocab"], top_p: float
) -> Float[Tensor, "batch some vocab"]:
    """Keep the likeliest tokens that together have the probability ``top_p``, at least one."""
    ranked, order = p.sort(dim=-1, descending=True)
    beyond = ranked.cumsum(-1) - ranked >= top_p
    return p.scatter(-1, order, ranked.masked_fill(beyond, 0.0))


def certainty(
    logits: Float[Tensor, "batch some vocab"],
    confidence: Float[Tensor, "batch some"],
    sampling: Sampling,
    dice: torch.Generator,
) -> Float[Tensor, "batch some"]:
    """Rank predictions: the higher, the earlier a position is written."""
    if sampling.remasking == "confidence":
        return confidence
    if sampling.remasking == "random":
        return torch.rand(confidence.shape, generator=dice).to(confidence.device)
    log_p = logits.float().log_softmax(-1)
    if sampling.remasking == "entropy":
        return (log_p.exp() * log_p.clamp_min(-1e4)).sum(-1)  # the mask's −∞ times 0 is 0
    best = log_p.exp().topk(2, dim=-1).values
    return best[..., 0] - best[..., 1]


def kept(
    rank: Float[Tensor, "batch some"],
    confidence: Float[Tensor, "batch some"],
    hidden: Bool[Tensor, "batch some"],
    quota: int,
    threshold: float | None,
) -> Bool[Tensor, "batch some"]:
    """Mark the hidden positions that are written now: the first ``quota`` and all that are sure."""
    rank = torch.where(hidden, rank, -torch.inf)
    place = rank.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    written = place < quota
    if threshold is not None:
        written |= confidence >= threshold
    return written & hidden
