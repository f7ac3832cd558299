"""dllm-hub's small denoisers: Qwen3 and Qwen2.5 networks, with full or block-causal attention.

Those trained as ``mdlm`` see everything; those trained as ``bd3lm`` are block-causal, which their
``config.json`` does not tell: give ``attention_block``.

Reference: github.com/ZHZisZZ/dllm, pipelines ``a2d``.
"""

from typing import Any

from quant_dllm.models import llama
from quant_dllm.models.config import BackboneConfig
from quant_dllm.models.family import ModelFamily, attention_block


def qwen3(raw: dict[str, Any]) -> BackboneConfig:
    """Read Qwen3's ``config.json``."""
    llama.refuse_variants(raw, {"attention_bias": False})
    return llama.read(raw, qk_norm=True, attention_block=attention_block(raw, None))


def qwen2(raw: dict[str, Any]) -> BackboneConfig:
    """Read Qwen2's ``config.json``, which does not say that q, k and v have biases."""
    return llama.read(raw, qkv_bias=True, attention_block=attention_block(raw, None))


QWEN3 = ModelFamily(
    name="a2d-qwen3",
    models="dllm-hub Qwen3-0.6B-diffusion mdlm and bd3lm",
    architectures=("A2DQwen3LMHeadModel",),
    model_types=("a2d-qwen3",),
    config=qwen3,
    mask_tokens=("<|mask|>",),
    end_tokens=("<|im_end|>",),
    names=llama.NAMES,
)
QWEN2 = ModelFamily(
    name="a2d-qwen2",
    models="dllm-hub Qwen2.5-Coder-0.5B-diffusion mdlm and bd3lm",
    architectures=("A2DQwen2LMHeadModel",),
    model_types=("a2d-qwen2",),
    config=qwen2,
    mask_tokens=("<|mask|>",),
    end_tokens=("<|im_end|>",),
    names=llama.NAMES,
)
