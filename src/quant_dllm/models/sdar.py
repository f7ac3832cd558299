"""SDAR and TraDo: Qwen3 networks that denoise short blocks, one after the other.

References: Cheng et al., "SDAR", arXiv:2510.06303; Wang et al., "TraceRL" (TraDo),
arXiv:2509.06949.
"""

from typing import Any

from quant_dllm.models import llama
from quant_dllm.models.config import BackboneConfig
from quant_dllm.models.family import ModelFamily, attention_block
from quant_dllm.models.sampling import Sampling


def config(raw: dict[str, Any]) -> BackboneConfig:
    """Read Qwen3's ``config.json``; blocks are of 4 tokens unless it says otherwise."""
    llama.refuse_variants(raw, {"attention_bias": False})
    return llama.read(raw, qk_norm=True, attention_block=attention_block(raw, 4))


FAMILY = ModelFamily(
    name="sdar",
    models="SDAR-1.7B, 4B and 8B, TraDo-4B and 8B",
    architectures=("SDARForCausalLM",),
    model_types=("sdar",),
    config=config,
    mask_tokens=("<|MASK|>",),
    mask_token_id=151669,
    end_tokens=("<|im_end|>",),
    sampling=Sampling(threshold=0.85, cache="exact"),
    names=llama.NAMES,
)
