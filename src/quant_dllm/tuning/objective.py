"""What a tuned model is held against: the 16-bit model's distribution at masked positions."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

HEAD_ROWS = 1024  # positions whose logits are in memory together


@dataclass(frozen=True)
class TopLogits:
    """The likeliest tokens of some positions and their log-probabilities; the rest is one sum.

    Storing a few dozen of a hundred thousand numbers loses what no one can see in the loss, and
    lets the 16-bit model be gone while the other one learns.
    """

    log_p: Float[Tensor, "positions top"]
    tokens: Int[Tensor, "positions top"]

    @classmethod
    def of(cls, logits: Float[Tensor, "positions vocab"], top: int) -> "TopLogits":
        """Keep the ``top`` likeliest tokens of each position, as float16 and int32."""
        log_p, tokens = logits.float().log_softmax(-1).topk(min(top, logits.shape[-1]))
        return cls(log_p.half(), tokens.int())

    def split(self, sizes: list[int]) -> list["TopLogits"]:
        """Cut it into so many positions each."""
        parts = zip(self.log_p.split(sizes), self.tokens.split(sizes), strict=True)
        return [TopLogits(*part) for part in parts]

    @classmethod
    def cat(cls, parts: Iterable["TopLogits"]) -> "TopLogits":
        """Put positions one after the other."""
        log_p, tokens = zip(*((part.log_p, part.tokens) for part in parts), strict=True)
        return cls(torch.cat(log_p), torch.cat(tokens))


def divergence(
    logits: Float[Tensor, "positions vocab"], target: TopLogits
) -> Float[Tensor, " positions"]:
    """Return KL(16-bit ‖ model), nats, over the kept tokens and one bucket for the rest."""
    theirs = target.log_p.to(logits.device).float()
    ours = logits.float().log_softmax(-1).gather(-1, target.tokens.to(logits.device).long())
    kl = (theirs.exp() * (theirs - ours)).sum(-1)
    return kl + _rest(theirs) * (_rest(theirs).log() - _rest(ours).log())


def _rest(log_p: Float[Tensor, "positions top"]) -> Float[Tensor, " positions"]:
    """Return the probability of all tokens that were not kept."""
    return (1 - log_p.exp().sum(-1)).clamp_min(1e-6)


def mean_by_sequence(
    values: Float[Tensor, " positions"], sequence: Int[Tensor, " positions"], count: int
) -> Float[Tensor, ""]:
    """Average over each sequence's positions, then over sequences: the weights of the bound.

    A sequence with l of L tokens hidden weighs L/l a hidden token in the likelihood bound, so that
    sequences count alike, whatever their mask ratio.
    """
    sums = torch.zeros(2, count, device=values.device)
    sums = sums.index_add(1, sequence, torch.stack((values, torch.ones_like(values))))
    return (sums[0] / sums[1].clamp_min(1)).mean()
