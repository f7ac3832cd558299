"""How wrong each layer's output is on masked text that nobody calibrated on."""

import torch
from jaxtyping import Int
from torch import Tensor, nn

from quant_dllm.evaluation.masks import MASK_RATIOS, at_ratio
from quant_dllm.linear import QuantLinear
from quant_dllm.models.model import DiffusionLM
from quant_dllm.models.network import NetworkBlock
from quant_dllm.statistics.layer import LayerStatistics, output_error


class LayerYardstick:
    """Second moments of every layer's inputs in the 16-bit model, on held-out masked windows.

    Each window is masked once, the mask ratios taking turns. The inputs are those of the 16-bit
    model, so that the errors of all quantized models are measured on the same.
    """

    def __init__(self, base: DiffusionLM, windows: Int[Tensor, "n length"], seed: int):
        self.base = base
        (n, length), block = windows.shape, base.source.config.attention_block
        masks = torch.stack(
            [at_ratio(n, length, r, seed + i, block) for i, r in enumerate(MASK_RATIOS)]
        )
        hidden = masks[torch.arange(n) % len(MASK_RATIOS), torch.arange(n)]
        canvas = torch.where(hidden, base.mask_token_id, windows)
        self.statistics = self._gather(canvas.to(base.device), windows.to(base.device))

    @torch.no_grad()
    def _gather(self, canvas: Tensor, text: Tensor) -> dict[str, LayerStatistics]:
        """Account for the inputs of each layer, by its slot; an expert that saw nothing has none.

        Layers that receive the same tensor share one account.
        """
        network, found = self.base.backbone, {}
        ids, sight = network.look(canvas, text)
        x = network.embed(ids)
        for index, module in enumerate(network.blocks):
            block: NetworkBlock = module  # type: ignore[assignment]
            for stage, inputs in zip(block.stages, block.stage_inputs(x, sight), strict=True):
                for group, y in zip(stage, inputs, strict=True):
                    if y.numel():
                        stats = LayerStatistics.gather([y])
                        found |= {f"blocks.{index}.{name}": stats for name in group.layers}
            x = block(x, sight)
        return found

    def measure(self, model: DiffusionLM) -> dict[str, float]:
        """Return ‖(W − Ŵ) X‖² / ‖W X‖² of each packed layer, by its slot in the network."""
        errors = {}
        for slot, stats in self.statistics.items():
            packed = model.backbone.get_submodule(slot)
            original = self.base.backbone.get_submodule(slot)
            assert isinstance(packed, QuantLinear) and isinstance(original, nn.Linear)
            weight, rounded = original.weight.float(), packed.weight.dequantize()
            errors[slot] = output_error(weight, rounded, stats)
        return errors
