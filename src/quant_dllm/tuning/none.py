"""What a recipe says that leaves its scales as rounding gave them."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class NoTuning:
    """Tune nothing."""
