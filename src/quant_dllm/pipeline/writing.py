"""The 16-bit model, writing: for calibrations that look at what it meets while it does."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from quant_dllm.generation.masked import denoise
from quant_dllm.models.load import load
from quant_dllm.models.model import DiffusionLM
from quant_dllm.models.sampling import Sampling


@dataclass(frozen=True)
class Writing:
    """A `calibration.base.Denoise`; the model is loaded whole, when it first writes."""

    folder: Path
    device: torch.device
    mask_token_id: int
    attention_block: int | None = None

    @cached_property
    def _model(self) -> DiffusionLM:
        return load(
            self.folder, device=self.device, mask_token_id=self.mask_token_id,
            attention_block=self.attention_block or 0,
        )  # fmt: skip

    def __call__(
        self, prompt: Int[Tensor, "n prompt"], length: int, steps: int, seed: int
    ) -> Iterator[Int[Tensor, "n canvas"]]:
        """Yield the canvas before the first step, and after every step, likeliest tokens first."""
        masks = torch.full((len(prompt), length), self.mask_token_id)
        yield torch.cat((prompt, masks), dim=1)
        block = self.attention_block
        sampling = Sampling(steps=steps, block_length=None if block else length)
        canvases = denoise(
            self._model, prompt.to(self.device), length=length, sampling=sampling,
            mask_token_id=self.mask_token_id, seed=seed, attention_block=block,
        )  # fmt: skip
        whole = prompt.shape[1] + length  # a block-causal model writes its last block to the end
        last = prompt
        for canvas in canvases:
            yield (last := canvas[:, :whole].cpu())
        while block:  # its blocks take whole steps, which may be fewer than were asked for
            yield last
