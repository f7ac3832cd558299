"""Which tokens are hidden while a model is measured: seeded, so that models share them."""

import torch
from jaxtyping import Bool
from torch import Tensor

MASK_RATIOS = (0.25, 0.5, 0.75, 1.0)


def stratified(
    n: int, draws: int, length: int, seed: int, block: int | None = None
) -> Bool[Tensor, "n draws length"]:
    """Hide l tokens at random, l stratified over 1 … length within the draws of each window.

    Draw d of D takes l from the d-th of D equal parts of the range, at one random place for all
    parts of a window: every l is as likely as every other, and the draws of a window cover the
    range evenly. With blocks, this happens in each block of each window.
    """
    if block:
        blocks = stratified(n * (length // block), draws, block, seed)
        return blocks.view(n, -1, draws, block).transpose(1, 2).flatten(2)
    dice = torch.Generator().manual_seed(seed)
    shift = torch.rand(n, 1, generator=dice)
    count = ((shift + torch.arange(draws)) / draws * length).long() + 1
    return lowest(torch.rand(n, draws, length, generator=dice), count.clamp(max=length))


def at_ratio(
    n: int, length: int, ratio: float, seed: int, block: int | None = None
) -> Bool[Tensor, "n length"]:
    """Hide the same share of each window, or of each block of it, at least one token."""
    if block:
        return at_ratio(n * (length // block), block, ratio, seed).view(n, -1)
    dice = torch.Generator().manual_seed(seed)
    count = torch.full((n,), max(1, round(ratio * length)))
    return lowest(torch.rand(n, length, generator=dice), count)


def lowest(noise: Tensor, count: Tensor) -> Tensor:
    """Mark the ``count`` smallest entries of the last axis."""
    return noise.argsort(-1).argsort(-1) < count[..., None]
