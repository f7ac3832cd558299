"""The bound on the negative log-likelihood that a masked diffusion model is trained by.

With l tokens of a window of L hidden, l uniform on 1 … L, and CE the cross-entropy of a hidden
token,

    −log p(x) ≤ E_l [ L/l · Σ_hidden CE ],      a token:  E_l [ mean of CE over the hidden ].

A block-causal model writes a window block after block; its bound is the sum of the blocks', each
given the finished blocks before it. A model with full attention has one block, the window.

Reference: Nie et al., "Large Language Diffusion Models", arXiv:2502.09992, equation 6; Ou et al.,
"Your Absorbing Discrete Diffusion …", arXiv:2406.03736; Arriola et al., "Block Diffusion",
arXiv:2503.09573.
"""

import math
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from quant_dllm.distributed import spread
from quant_dllm.track import Track, silent

BATCH_TOKENS = 4096


@runtime_checkable
class Denoiser(Protocol):
    """What measuring needs of a model."""

    @property
    def mask_token_id(self) -> int:
        """Say which token is the mask."""
        ...

    @property
    def device(self) -> torch.device:
        """Say where it is."""
        ...

    def logits_at(self, input_ids: Tensor, where: Tensor, text: Tensor) -> Tensor:
        """Score the marked positions [batch, length] of a canvas that hides some of a text."""
        ...


@torch.no_grad()
def hidden_cross_entropy(
    model: Denoiser,
    windows: Int[Tensor, "n length"],
    hidden: Bool[Tensor, "n length"],
    block: int | None = None,
) -> Float[Tensor, " n"]:
    """Return each window's mean cross-entropy over its hidden tokens, nats.

    Args:
        model: The model.
        windows: Text.
        hidden: At least one token of each block.
        block: Tokens of a block, if each block's mean is to count the same; else the window.
    """
    text = windows.to(model.device)
    where = hidden.to(model.device)
    logits = model.logits_at(torch.where(where, model.mask_token_id, text), where, text).float()
    loss = F.cross_entropy(logits, text[where], reduction="none").cpu()
    n, length = windows.shape
    blocks = hidden.view(n, -1, block or length)
    place = blocks.flatten(0, 1).nonzero()[:, 0]
    sums = torch.zeros(blocks.shape[:2]).flatten().index_add_(0, place, loss)
    return (sums.view(n, -1) / blocks.sum(-1)).mean(1)


def nelbo(
    model: Denoiser,
    windows: Int[Tensor, "n length"],
    hidden: Bool[Tensor, "n draws length"],
    track: Track = silent,
    block: int | None = None,
) -> Float[Tensor, " n"]:
    """Estimate each window's bound, nats a token.

    Args:
        model: The model.
        windows: Held-out text.
        hidden: What is hidden in each draw, see `masks.stratified`.
        track: Watches the progress.
        block: Tokens of a block of attention; the window if not given.
    """
    n, draws, length = hidden.shape
    flat = windows[:, None].expand(n, draws, length).flatten(0, 1)
    size = max(1, BATCH_TOKENS // length)
    parts = list(zip(flat.split(size), hidden.flatten(0, 1).split(size), strict=True))
    losses = spread(
        parts, lambda part: hidden_cross_entropy(model, *part, block).tolist(), track, "bound",
        len(parts),
    )  # fmt: skip
    return torch.tensor([loss for part in losses for loss in part]).view(n, draws).mean(1)


def mean_and_error(values: Float[Tensor, " n"]) -> tuple[float, float]:
    """Return the mean over windows and its standard error."""
    spread = values.std().item() if len(values) > 1 else math.nan
    return values.mean().item(), spread / math.sqrt(len(values))
