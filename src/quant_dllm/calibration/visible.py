"""Calibrate on text as it stands: what every autoregressive method does."""

from collections.abc import Iterator
from dataclasses import dataclass

from jaxtyping import Int
from torch import Tensor

from quant_dllm.calibration.base import Calibration, Denoise


@dataclass(frozen=True, kw_only=True)
class Visible(Calibration):
    """Hide nothing."""

    def views(
        self,
        windows: Int[Tensor, "n length"],
        mask_token_id: int,
        seed: int,
        denoise: Denoise | None = None,
    ) -> Iterator[Int[Tensor, " length"]]:
        """Yield the windows."""
        yield from windows
