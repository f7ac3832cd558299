"""Fast-dLLM v2: Qwen2.5 networks that denoise blocks of 32; logits are still shifted by one.

Reference: Wu et al., "Fast-dLLM v2", arXiv:2509.26328.
"""

from typing import Any

from quant_dllm.models import llama
from quant_dllm.models.config import BackboneConfig
from quant_dllm.models.family import ModelFamily, attention_block
from quant_dllm.models.sampling import Sampling


def config(raw: dict[str, Any]) -> BackboneConfig:
    """Read Qwen2's ``config.json``, which does not say that q, k and v have biases."""
    return llama.read(raw, qkv_bias=True, attention_block=attention_block(raw, 32))


FAMILY = ModelFamily(
    name="fast-dllm",
    models="Fast_dLLM_v2 1.5B and 7B",
    architectures=("Fast_dLLM_QwenForCausalLM",),
    model_types=("Fast_dLLM_Qwen",),
    config=config,
    mask_tokens=("|<MASK>|",),
    mask_token_id=151665,
    end_tokens=("<|im_end|>",),
    shift=True,
    sampling=Sampling(block_length=8, threshold=0.9, cache="exact"),  # sub-blocks of the 32
    names=llama.NAMES,
)
