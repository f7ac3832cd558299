"""How far a model's distribution at hidden positions is from another model's."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from quant_dllm.distributed import spread
from quant_dllm.evaluation.likelihood import Denoiser
from quant_dllm.track import Track, silent

BATCH_TOKENS = 1024  # two distributions over a large vocabulary are in memory for each


@torch.no_grad()
def _compare(
    model: Denoiser, base: Denoiser, windows: Tensor, hidden: Tensor
) -> Float[Tensor, "2 n"]:
    canvas = torch.where(hidden, model.mask_token_id, windows)

    def log_p(m: Denoiser) -> Tensor:
        logits = m.logits_at(*(t.to(m.device) for t in (canvas, hidden, windows)))
        return logits.float().log_softmax(-1).to(base.device)

    theirs, ours = log_p(base), log_p(model)
    same = (theirs.argmax(-1) == ours.argmax(-1)).float().cpu()
    kl = torch.linalg.vecdot(theirs.exp(), ours.neg_().add_(theirs)).cpu()
    rows = hidden.nonzero()[:, 0]
    sums = torch.zeros(2, len(windows)).index_add_(1, rows, torch.stack((kl, same)))
    return sums / hidden.sum(1)


def divergence(
    model: Denoiser,
    base: Denoiser,
    windows: Int[Tensor, "n length"],
    hidden: Bool[Tensor, "n length"],
    track: Track = silent,
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Return each window's mean KL(base ‖ model), nats, and share of equal first choices."""
    size = max(1, BATCH_TOKENS // windows.shape[1])
    parts = list(zip(windows.split(size), hidden.split(size), strict=True))
    found = spread(
        parts, lambda part: _compare(model, base, *part).tolist(), track, "divergence", len(parts)
    )
    kl, same = torch.cat([torch.tensor(part) for part in found], dim=1)
    return kl, same
