"""Llama networks taught to denoise: full attention, and logits still shifted by one.

Reference: Gong et al., "Scaling Diffusion Language Models via Adaptation from Autoregressive
Models", arXiv:2410.17891.
"""

from typing import Any

from quant_dllm.errors import ModelError
from quant_dllm.models import llama
from quant_dllm.models.config import BackboneConfig
from quant_dllm.models.family import ModelFamily


def config(raw: dict[str, Any]) -> BackboneConfig:
    """Read Llama's ``config.json``; only its ``mask_token_id`` tells a denoiser from a Llama."""
    if raw.get("mask_token_id") is None:
        raise ModelError(
            "config.json is that of an autoregressive Llama: it names no mask_token_id. Masked "
            "diffusion models are wanted; if this is one, add its mask_token_id to config.json."
        )
    llama.refuse_variants(raw, {"attention_bias": False})
    return llama.read({"rope_theta": 10000.0} | raw)  # Llama 2 does not write its own


FAMILY = ModelFamily(
    name="diffullama",
    models="DiffuLLaMA-7B; Llamas adapted the same way",
    architectures=("LlamaForCausalLM",),
    model_types=("llama",),
    config=config,
    mask_tokens=(),
    shift=True,
    names=llama.NAMES,
)
