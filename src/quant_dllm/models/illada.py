"""iLLaDA 8B: LLaDA's denoising on a Llama network with grouped heads and a tied head.

Reference: "iLLaDA", arXiv:2606.25331.
"""

from typing import Any

from quant_dllm.models import llama
from quant_dllm.models.config import BackboneConfig
from quant_dllm.models.family import ModelFamily


def config(raw: dict[str, Any]) -> BackboneConfig:
    """Read Llama's ``config.json``; the head is tied unless it says otherwise."""
    llama.refuse_variants(raw, {"layer_norm_eps": None, "attention_bias": False})
    return llama.read({"tie_word_embeddings": True} | raw)


FAMILY = ModelFamily(
    name="illada",
    models="iLLaDA-8B Base and Instruct",
    architectures=("ILLaDAForCausalLM",),
    model_types=("illada",),
    config=config,
    mask_tokens=("<[MASK]>",),
    mask_token_id=5,  # neither configuration nor tokenizer names it
    names=llama.NAMES,
)
