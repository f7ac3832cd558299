"""All that this package needs to know about a family of models, as one value."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from quant_dllm.models.backbone import Backbone
from quant_dllm.models.config import BackboneConfig
from quant_dllm.models.network import Network
from quant_dllm.models.sampling import Sampling
from quant_dllm.models.scoring import Scoring

DEFAULT_SAMPLING = Sampling(block_length=32)  # LLaDA's
DEFAULT_SCORING = Scoring()  # LLaDA's, without guidance


def backbone(config: BackboneConfig, raw: dict[str, Any]) -> Network:
    """Build our own network on the meta device: no memory is taken."""
    with torch.device("meta"):
        return Backbone(config)


@dataclass(frozen=True, kw_only=True)
class ModelFamily:
    """How a checkpoint becomes a `Network`, and how the model denoises.

    Attributes:
        name: The family's name in messages.
        models: Published models that are of it.
        architectures: Class names in ``config.json``; they are matched before ``model_types``.
        model_types: Values of ``model_type`` in ``config.json``.
        config: Reads ``config.json`` into the numbers of the network; raises `ModelError` on
            a variant that the network cannot be.
        names: Slot of the network → upstream's tensor, both less ``.weight``, full paths;
            each ``*`` stands for a number: of the block, of the expert.
        mask_tokens: Strings that upstream's tokenizers use for the mask token.
        mask_token_id: Its id where neither configuration nor tokenizer tells; ``None``: not known.
        end_tokens: Strings behind which an answer ends, beside the tokenizer's end of text.
        shift: Whether row i of the logits predicts position i + 1, as in models that grew out of
            autoregressive ones; position 0 then reads row 0.
        sampling: How its authors draw text from it.
        scoring: How its authors estimate the likelihood of an answer.
        build: Makes the network, with parameters on the meta device, from the numbers and
            ``config.json``.
    """

    name: str
    models: str
    architectures: tuple[str, ...]
    model_types: tuple[str, ...]
    config: Callable[[dict[str, Any]], BackboneConfig]
    names: dict[str, str]
    mask_tokens: tuple[str, ...]
    mask_token_id: int | None = None
    end_tokens: tuple[str, ...] = ()
    shift: bool = False
    sampling: Sampling = DEFAULT_SAMPLING
    scoring: Scoring = DEFAULT_SCORING
    build: Callable[[BackboneConfig, dict[str, Any]], Network] = backbone

    def row(self, position: Int[Tensor, " some"]) -> Int[Tensor, " some"]:
        """Return the rows of the logits in which the tokens of positions are predicted."""
        return (position - 1).clamp_min(0) if self.shift else position

    def upstream(self, name: str) -> str:
        """Translate a tensor of the network, ``blocks.3.mlp.down.weight``, to upstream's name."""
        slot, _, tensor = name.rpartition(".")
        parts = slot.split(".")
        found = self.names[".".join("*" if part.isdigit() else part for part in parts)]
        for number in filter(str.isdigit, parts):
            found = found.replace("*", number, 1)
        return f"{found}.{tensor}"


def attention_block(raw: dict[str, Any], default: int | None) -> int | None:
    """Read the length of block-causal attention from ``config.json``; 0 there means full.

    Checkpoints that we wrote say ``attention_block``; Fast-dLLM v2 says ``bd_size``, others
    ``block_size`` or nothing.
    """
    for key in ("attention_block", "bd_size", "block_size"):
        if isinstance(raw.get(key), int):
            return raw[key] or None
    return default
