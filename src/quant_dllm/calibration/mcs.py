"""Masked Calibration Simulation: show a layer what it will see while the model denoises.

A denoiser never sees clean text: it sees a visible prefix and a rest of which a share t is masked,
with t falling from 1 to 0. So each view hides every token behind the prefix with probability
t = 1 − α(t).

Reference: Quant-dLLM, arXiv:2510.03274, section on MCS.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from quant_dllm.calibration.base import Calibration, Denoise
from quant_dllm.errors import RecipeError


@dataclass(frozen=True, kw_only=True)
class MaskedCalibrationSimulation(Calibration):
    """Mask windows as the timesteps of denoising would.

    Attributes:
        prompt: γ, the fraction of a window, from the left, that is always visible.
        timesteps: ``None``: one timestep a window, (i + 1)/n for window i of n, so that the windows
            together pass over (0, 1] (the release). A number T: T masked copies of each window,
            at 1/T … 1 (the paper's mean over timesteps); T times the work.
    """

    prompt: float = 0.25
    timesteps: int | None = None

    def __post_init__(self) -> None:
        """Refuse a prefix that leaves nothing to hide."""
        super().__post_init__()
        if not 0 <= self.prompt < 1:
            raise RecipeError(f"calibration.prompt is {self.prompt}; it must be in [0, 1).")
        if self.timesteps is not None and self.timesteps < 1:
            raise RecipeError(f"calibration.timesteps is {self.timesteps}; at least 1 is wanted.")

    def hidden(self, length: int, t: float, seed: int) -> Bool[Tensor, " length"]:
        """Draw the positions hidden at time ``t``."""
        dice = torch.Generator().manual_seed(seed)
        behind = torch.arange(length) >= int(self.prompt * length)
        return behind & (torch.rand(length, generator=dice) < t)

    def views(
        self,
        windows: Int[Tensor, "n length"],
        mask_token_id: int,
        seed: int,
        denoise: Denoise | None = None,
    ) -> Iterator[Int[Tensor, " length"]]:
        """Yield masked windows; view v draws its mask from ``seed + v``, wherever it is made."""
        n, copies = len(windows), self.timesteps or 1
        for v in range(n * copies):
            i, s = divmod(v, copies)
            t = (s + 1) / copies if self.timesteps else (i + 1) / n
            hidden = self.hidden(windows.shape[1], t, seed + v)
            yield torch.where(hidden, mask_token_id, windows[i])
