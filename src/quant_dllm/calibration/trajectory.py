"""Calibrate on the model's own denoising trajectories: canvases that it meets while it writes.

Random masks hide every token alike, and what is visible is people's text. A denoiser that writes
sees its own words, the surest first. So each window's prefix is written on by the 16-bit model, and
one canvas on the way is the view: the one of which a share t is still masked, where t passes over
(0, 1] with the windows as in `calibration.mcs`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from jaxtyping import Int
from torch import Tensor

from quant_dllm.calibration.base import Calibration, Denoise
from quant_dllm.errors import RecipeError


@dataclass(frozen=True, kw_only=True)
class DenoisingTrajectory(Calibration):
    """Show states that the model passes while it writes behind a prefix.

    Attributes:
        prompt: Fraction of a window, from the left, that the model writes behind.
        steps: Model calls in which it writes a whole window.
        batch: Windows that are written side by side.
    """

    prompt: float = 0.25
    steps: int = 32
    batch: int = 16

    def __post_init__(self) -> None:
        """Refuse a prefix that leaves nothing to write, and a trajectory without states."""
        super().__post_init__()
        if not 0 <= self.prompt < 1:
            raise RecipeError(f"calibration.prompt is {self.prompt}; it must be in [0, 1).")
        if min(self.steps, self.batch) < 1:
            raise RecipeError(
                f"calibration.steps is {self.steps} and batch {self.batch}; at least 1 is wanted."
            )

    def views(
        self,
        windows: Int[Tensor, "n length"],
        mask_token_id: int,
        seed: int,
        denoise: Denoise | None = None,
    ) -> Iterator[Int[Tensor, " length"]]:
        """Yield a state of each window's trajectory; window i's has a share (i + 1)/n masked.

        Windows of one batch are neighbours in time: what follows their last state is not written.
        """
        assert denoise is not None, "the pipeline lets the model write"
        n, length = windows.shape
        prompt = int(self.prompt * length)
        steps = min(self.steps, length - prompt)
        for first in range(0, n, self.batch):
            part = windows[first : first + self.batch]
            written = denoise(part[:, :prompt], length - prompt, steps, seed + first)
            wanted = [round((1 - (i + 1) / n) * steps) for i in range(first, first + len(part))]
            states = [next(written) for _ in range(max(wanted) + 1)]
            yield from (states[step][row] for row, step in enumerate(wanted))
