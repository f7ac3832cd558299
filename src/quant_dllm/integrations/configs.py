"""Configurations of every family for transformers: upstream's ``config.json``, key by key."""

from functools import cache
from typing import Any

from transformers import AutoConfig, PretrainedConfig

from quant_dllm.checkpoint.shim import OURS, TAKEN
from quant_dllm.models.family import ModelFamily
from quant_dllm.models.source import FAMILIES

WRAPPED = f"{OURS}modernbert"  # the one network that is transformers' own


class DenoiserConfig(PretrainedConfig):
    """What upstream's ``config.json`` says; nothing is renamed.

    Attributes:
        attention_block: Length of block-causal attention, 0 for full attention, where neither the
            folder nor the family says it right; pass it to ``from_pretrained``.
        mask_token_id: The mask token, likewise.
    """

    def __init__(self, **raw: Any):
        # the base class ties embedding and head unless it is told not to; upstream need not say so
        asked = {"tie_word_embeddings": False, "attention_block": None, "mask_token_id": None}
        super().__init__(**asked | raw)


def model_types() -> list[str]:
    """List the model types that are registered: upstream's, or ours where transformers has one."""
    families: list[ModelFamily] = [FAMILIES.get(name) for name in FAMILIES.targets]
    kinds = {kind for family in families for kind in family.model_types}
    return sorted(OURS + kind if kind in TAKEN else kind for kind in kinds)


@cache
def config_class(model_type: str) -> type[PretrainedConfig]:
    """Make the configuration class of a model type.

    That of a wrapped network is transformers' own class under another model type.
    """
    name = "".join(part.capitalize() for part in model_type.replace("-", "_").split("_"))
    body: dict[str, Any] = {"model_type": model_type, "__module__": __name__}
    if model_type == WRAPPED:
        from transformers import ModernBertConfig

        return type(f"{name}Config", (ModernBertConfig,), body)  # type: ignore[return-value]
    body["__init__"] = DenoiserConfig.__init__  # else transformers 5 makes another one
    return type(f"{name}Config", (DenoiserConfig,), body)  # type: ignore[return-value]


def register(wrapped: bool = False) -> None:
    """Register them; a second time changes nothing.

    Args:
        wrapped: Whether the networks that are transformers' own can be imported by now.
    """
    for model_type in model_types():
        if model_type == WRAPPED and not wrapped:
            continue
        AutoConfig.register(model_type, config_class(model_type), exist_ok=True)
