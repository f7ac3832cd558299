"""How wrong each layer's output is on masked text that nobody calibrated on."""

from itertools import product

import torch
from jaxtyping import Int
from torch import Tensor, nn

from quant_dllm.evaluation.masks import MASK_RATIOS, at_ratio
from quant_dllm.linear import QuantLinear
from quant_dllm.models.backbone import STAGES, Block
from quant_dllm.models.model import DiffusionLM
from quant_dllm.statistics.layer import LayerStatistics, output_error


class LayerYardstick:
    """Second moments of every stage's inputs in the 16-bit model, on held-out masked windows.

    Each window is masked once, the mask ratios taking turns. The inputs are those of the 16-bit
    model, so that the errors of all quantized models are measured on the same.
    """

    def __init__(self, base: DiffusionLM, windows: Int[Tensor, "n length"], seed: int):
        self.base = base
        n, length = windows.shape
        masks = torch.stack([at_ratio(n, length, r, seed + i) for i, r in enumerate(MASK_RATIOS)])
        hidden = masks[torch.arange(n) % len(MASK_RATIOS), torch.arange(n)]
        canvas = torch.where(hidden, base.mask_token_id, windows).to(base.device)
        self.statistics = self._gather(canvas)

    @torch.no_grad()
    def _gather(self, canvas: Int[Tensor, "n length"]) -> list[LayerStatistics]:
        backbone, found = self.base.backbone, []
        x, rotary = backbone.embed(canvas), backbone.rotary(canvas.shape[1], canvas.device)
        for block in backbone.blocks:
            assert isinstance(block, Block)
            found += [LayerStatistics.gather([y]) for y in block.stage_inputs(x, rotary)]
            x = block(x, rotary)
        return found

    def measure(self, model: DiffusionLM) -> dict[str, float]:
        """Return ‖(W − Ŵ) X‖² / ‖W X‖² of each packed layer, by its slot in the backbone."""
        errors = {}
        for b, s in product(range(model.source.config.blocks), range(len(STAGES))):
            for name in STAGES[s]:
                slot = f"blocks.{b}.{name}"
                packed = model.backbone.get_submodule(slot)
                original = self.base.backbone.get_submodule(slot)
                assert isinstance(packed, QuantLinear) and isinstance(original, nn.Linear)
                stats = self.statistics[len(STAGES) * b + s]
                weight, rounded = original.weight.float(), packed.weight.dequantize()
                errors[slot] = output_error(weight, rounded, stats)
        return errors
