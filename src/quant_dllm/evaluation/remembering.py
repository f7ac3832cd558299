"""A model that is asked the same again and again: what leads to its logits is kept."""

import torch
from torch import Tensor

from quant_dllm.models.model import DiffusionLM


class Remembering:
    """A `Denoiser` that runs its network once for each question.

    Kept are the states in front of the head, which are a hundred times smaller than logits.
    """

    def __init__(self, model: DiffusionLM):
        self.model = model
        self.mask_token_id, self.device = model.mask_token_id, model.device
        self._kept: list[tuple[tuple[Tensor, ...], Tensor]] = []

    def logits_at(self, input_ids: Tensor, where: Tensor, text: Tensor) -> Tensor:
        """Score the marked positions, see `DiffusionLM.logits_at`."""
        asked = (input_ids, where, text)
        for known, states in self._kept:
            if all(torch.equal(a, b) for a, b in zip(known, asked, strict=True)):
                return self.model.backbone.project(states)
        states = self.model.states_at(*asked)
        self._kept.append((asked, states))
        return self.model.backbone.project(states)
