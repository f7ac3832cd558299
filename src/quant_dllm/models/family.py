"""All that this package needs to know about a family of models, as one value."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxtyping import Int
from torch import Tensor

from quant_dllm.models.backbone import BackboneConfig


@dataclass(frozen=True, kw_only=True)
class ModelFamily:
    """How a checkpoint becomes a `Backbone`, and how the model denoises.

    Attributes:
        name: The family's name in messages.
        architectures: Class names in ``config.json``; they are matched before ``model_types``.
        model_types: Values of ``model_type`` in ``config.json``.
        config: Reads ``config.json`` into the numbers of the network; raises `ModelError` on
            a variant that the network cannot be.
        names: Slot of the backbone → upstream's tensor, both less ``.weight``, full paths;
            ``*`` stands for the number of the block.
        mask_tokens: Strings that upstream's tokenizers use for the mask token.
        shift: Whether row i of the logits predicts position i + 1, as in models that grew out of
            autoregressive ones; position 0 then reads row 0.
    """

    name: str
    architectures: tuple[str, ...]
    model_types: tuple[str, ...]
    config: Callable[[dict[str, Any]], BackboneConfig]
    names: dict[str, str]
    mask_tokens: tuple[str, ...]
    shift: bool = False

    def row(self, position: Int[Tensor, " some"]) -> Int[Tensor, " some"]:
        """Return the rows of the logits in which the tokens of positions are predicted."""
        return (position - 1).clamp_min(0) if self.shift else position

    def upstream(self, name: str) -> str:
        """Translate a tensor of the backbone, ``blocks.3.mlp.down.weight``, to upstream's name."""
        slot, _, tensor = name.rpartition(".")
        number = next((part for part in slot.split(".") if part.isdigit()), "")
        pattern = slot.replace(f".{number}.", ".*.", 1) if number else slot
        return f"{self.names[pattern].replace('*', number)}.{tensor}"
