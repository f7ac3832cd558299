"""Tune all scales at once on the distance between the packed and the 16-bit model."""

from dataclasses import dataclass

from quant_dllm.errors import RecipeError


@dataclass(frozen=True, kw_only=True)
class EndToEnd:
    """Adam on all scales, fresh windows and masks at every step.

    Attributes:
        steps: Updates.
        batch: Windows an update; as many more as give every process the same number, at least one.
        length: Tokens of a window; the model's context where that is shorter.
        rate: Highest learning rate of relative changes of scales (dimensionless).
        warmup: Fraction of the steps in which the rate rises from zero; then it falls as a cosine.
        norms: Whether the norms' weights are tuned beside the scales.
        top: Likeliest tokens of the 16-bit model that are kept a position.
        round: Updates between two visits of the 16-bit model, which is streamed.
        validation: Windows set aside; the scales that do best on them are kept.
        validate_every: Updates between two looks at them.
    """

    steps: int = 300
    batch: int = 12
    length: int = 4096
    rate: float = 0.01
    warmup: float = 0.05
    norms: bool = True
    top: int = 128
    round: int = 50
    validation: int = 32
    validate_every: int = 50

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing."""
        if min(self.steps, self.batch, self.length, self.top, self.round) < 1 or self.rate <= 0:
            raise RecipeError(
                f"tuning has steps {self.steps}, batch {self.batch}, length {self.length}, top "
                f"{self.top}, round {self.round} and rate {self.rate}; all must be above 0."
            )

    @property
    def windows(self) -> int:
        """Count the windows that are wanted at most: none is shown twice where there are enough."""
        return self.steps * self.batch
