"""The bound on the negative log-likelihood that a masked diffusion model is trained by.

With l tokens of a window of L hidden, l uniform on 1 … L, and CE the cross-entropy of a hidden
token,

    −log p(x) ≤ E_l [ L/l · Σ_hidden CE ],      a token:  E_l [ mean of CE over the hidden ].

Reference: Nie et al., "Large Language Diffusion Models", arXiv:2502.09992, equation 6; Ou et al.,
"Your Absorbing Discrete Diffusion …", arXiv:2406.03736.
"""

import math
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

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

    def logits_at(self, input_ids: Tensor, where: Tensor) -> Tensor:
        """Score the marked positions [batch, length] of a canvas, row after row."""
        ...


@torch.no_grad()
def hidden_cross_entropy(
    model: Denoiser, windows: Int[Tensor, "n length"], hidden: Bool[Tensor, "n length"]
) -> Float[Tensor, " n"]:
    """Return each window's mean cross-entropy over its hidden tokens, nats."""
    canvas = torch.where(hidden, model.mask_token_id, windows).to(model.device)
    logits = model.logits_at(canvas, hidden.to(model.device)).float()
    loss = F.cross_entropy(logits, windows[hidden].to(model.device), reduction="none").cpu()
    rows = hidden.nonzero()[:, 0]
    return torch.zeros(len(windows)).index_add_(0, rows, loss) / hidden.sum(1)


def nelbo(
    model: Denoiser,
    windows: Int[Tensor, "n length"],
    hidden: Bool[Tensor, "n draws length"],
    track: Track = silent,
) -> Float[Tensor, " n"]:
    """Estimate each window's bound, nats a token.

    Args:
        model: The model.
        windows: Held-out text.
        hidden: What is hidden in each draw, see `masks.stratified`.
        track: Watches the progress.
    """
    n, draws, length = hidden.shape
    flat = windows[:, None].expand(n, draws, length).flatten(0, 1)
    size = max(1, BATCH_TOKENS // length)
    parts = list(zip(flat.split(size), hidden.flatten(0, 1).split(size), strict=True))
    losses = [hidden_cross_entropy(model, *part) for part in track(parts, "bound", len(parts))]
    return torch.cat(losses).view(n, draws).mean(1)


def mean_and_error(values: Float[Tensor, " n"]) -> tuple[float, float]:
    """Return the mean over windows and its standard error."""
    spread = values.std().item() if len(values) > 1 else math.nan
    return values.mean().item(), spread / math.sqrt(len(values))
