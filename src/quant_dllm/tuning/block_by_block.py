"""Tune the scales of each block by itself, on the distance to the full-precision block's output."""

from dataclasses import dataclass

from quant_dllm.errors import RecipeError


@dataclass(frozen=True, kw_only=True)
class BlockByBlock:
    """Adam on the scales of one block, over the calibration text that is shown to it.

    Attributes:
        passes: Over the text.
        batch: Windows an update and process, as far as so many pass a block together.
        rate: Highest learning rate of relative changes of scales (dimensionless).
        warmup: Fraction of the updates in which the rate rises; then it falls as a cosine.
        validation: Share of the text that is set aside; the scales that do best on it are kept.
    """

    passes: int = 4
    batch: int = 4
    rate: float = 0.01
    warmup: float = 0.05
    validation: float = 0.125

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing."""
        if min(self.passes, self.batch) < 1 or self.rate <= 0 or not 0 < self.validation <= 0.5:
            raise RecipeError(
                f"block_tuning has passes {self.passes}, batch {self.batch}, rate {self.rate} and "
                f"validation {self.validation}; all must be above 0, validation at most 0.5."
            )
