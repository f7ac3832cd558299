"""A model's own code with random weights, small enough to be watched."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from quant_dllm.errors import ModelError
from quant_dllm.models.discover import KEYS

BLOCKS, VOCAB = 2, 256  # what is left of a model: what is watched does not depend on them


def random_upstream(folder: Path, trust: bool) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """Make the model of a folder from its ``config.json`` alone, with transformers.

    Args:
        folder: The model's folder.
        trust: Whether code that lies in the folder may run.

    Returns:
        The model, and a function from token ids [batch, length] to logits.

    Raises:
        ModelError: transformers has no code for it, or it does not run.
    """
    from transformers import (
        AutoConfig,
        AutoModel,
        AutoModelForCausalLM,
        AutoModelForMaskedLM,
    )

    reasons = []
    for auto in (AutoModelForCausalLM, AutoModelForMaskedLM, AutoModel):
        try:
            config = AutoConfig.from_pretrained(folder, trust_remote_code=trust)
            model = auto.from_config(_shrunk(config), trust_remote_code=trust).float().eval()
            _shake(model)
            model_logits = _logits(model)
            model_logits(torch.zeros(1, 4, dtype=torch.long))
        except Exception as error:  # foreign code raises what it likes
            reasons.append(str(error).strip().splitlines()[0] if str(error) else repr(error))
        else:
            return model, model_logits
    hint = "" if trust else " If its code lies in the folder and you trust it: --trust-remote-code."
    raise ModelError(f"{folder}: transformers cannot run it ({reasons[0]}).{hint}")


def _logits(model: nn.Module) -> Callable[[Tensor], Tensor]:
    def run(ids: Tensor) -> Tensor:
        found = model(input_ids=ids)
        logits = getattr(found, "logits", None)
        if logits is None:
            raise ModelError("it returns no logits")
        return logits

    return run


def _shrunk(config: Any) -> Any:
    for key in KEYS["blocks"]:
        if hasattr(config, key):
            setattr(config, key, BLOCKS)
    for key in KEYS["vocab"]:
        if hasattr(config, key):
            setattr(config, key, VOCAB)
    if isinstance(getattr(config, "layer_types", None), list):
        config.layer_types = config.layer_types[:BLOCKS]
    config.pad_token_id = None
    return config


def _shake(model: nn.Module) -> None:
    """Make every weight matter: fresh models start with norms of one and attention that is flat."""
    dice = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=dice)
        if parameter.ndim == 1:
            parameter.data += 0.3 * noise
        else:
            parameter.data = noise / parameter.shape[-1] ** 0.5
