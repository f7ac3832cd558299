"""Which weights of a block are binarized alike: salient columns, and two areas by magnitude.

Both searches minimise the error of binarizing each part row by row with its mean magnitude,
‖w‖² − ‖w‖₁²/n for the n weights of a part in one row.

Symbols:
    W  block, [out, block]    D  diagonal of U, [block]    p  break-point, a magnitude

Reference: Huang et al., "BiLLM", arXiv:2402.04291, section 3 and algorithm 2.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from quant_dllm.statistics.importance import importance


def salient_columns(
    block: Float[Tensor, "out block"], d: Float[Tensor, " block"], most: int
) -> Bool[Tensor, " block"]:
    """Mark the n columns of greatest ΣW²/D², n from 1 to ``most`` with the least error.

    At least one column is left unmarked; a block of one column has none to mark.
    """
    width = block.shape[1]
    ranked = importance(block, d).sum(dim=0).argsort(descending=True, stable=True)
    sums = block[:, ranked].abs().cumsum(dim=1, dtype=torch.float64)
    n = torch.arange(1, min(most, width - 1) + 1, device=block.device)
    inside = sums[:, : len(n)]
    kept = (inside.square() / n + (sums[:, -1:] - inside).square() / (width - n)).sum(dim=0)
    marked = torch.zeros(width, dtype=torch.bool, device=block.device)
    if len(n):
        marked[ranked[: int(kept.argmax()) + 1]] = True
    return marked


def break_point(
    block: Float[Tensor, "out block"], part: Bool[Tensor, "out block"], steps: int
) -> float:
    """Return the p that splits a part into |w| ≤ p and |w| > p with the least error.

    Candidates are the multiples of 1/(steps + 1) of the part's greatest magnitude.
    """
    size = block.abs() * part
    largest, best, most = size.max().item(), 0.0, -torch.inf
    for step in range(1, steps + 1):
        p = largest * step / (steps + 1)
        areas = (part & (size <= p), part & (size > p))
        sums = ((size * area).sum(dim=1).double() for area in areas)
        counts = (area.sum(dim=1).clamp_min(1) for area in areas)
        kept = sum((s.square() / n).sum().item() for s, n in zip(sums, counts, strict=True))
        if kept > most:
            best, most = p, kept
    return best
