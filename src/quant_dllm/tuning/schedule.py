"""How fast scales are learned: the rate rises from zero, then falls as a cosine."""

import math


def rate_at(step: int, steps: int, highest: float, warmup: float) -> float:
    """Return the learning rate of an update.

    Args:
        step: Its number, from 0.
        steps: Updates in all.
        highest: The rate when it has risen.
        warmup: Fraction of the updates in which it rises.
    """
    progress = step / steps
    if progress < warmup:
        return highest * (step + 1) / max(1.0, warmup * steps)
    return highest * (0.5 + 0.5 * math.cos(math.pi * (progress - warmup) / (1 - warmup)))
