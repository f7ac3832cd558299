"""Blocks that keep nothing but their input for the gradient, and run again when it arrives.

Reference: Chen et al., "Training Deep Nets with Sublinear Memory Cost", arXiv:1604.06174.
"""

from collections.abc import Iterable
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint


def recompute(blocks: Iterable[nn.Module]) -> None:
    """Let blocks run twice and keep little; gradients are the same bits."""
    for block in blocks:
        block.forward = partial(
            checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False
        )


def keep(blocks: Iterable[nn.Module]) -> None:
    """Undo `recompute`."""
    for block in blocks:
        vars(block).pop("forward", None)
