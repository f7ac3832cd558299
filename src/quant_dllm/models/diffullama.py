"""Llama networks taught to denoise: full attention, and logits still shifted by one.

Reference: Gong et al., "Scaling Diffusion Language Models via Adaptation from Autoregressive
Models", arXiv:2410.17891.
"""

from typing import Any

from quant_dllm.errors import ModelError
from quant_dllm.models.backbone import BackboneConfig
from quant_dllm.models.family import ModelFamily

BLOCK = "model.layers.*"


def config(raw: dict[str, Any]) -> BackboneConfig:
    """Read Llama's ``config.json``; only its ``mask_token_id`` tells a denoiser from a Llama."""
    if raw.get("mask_token_id") is None:
        raise ModelError(
            "config.json is that of an autoregressive Llama: it names no mask_token_id. Masked "
            "diffusion models are wanted; if this is one, add its mask_token_id to config.json."
        )
    if raw.get("rope_scaling") or raw.get("attention_bias") or raw.get("mlp_bias"):
        raise ModelError(
            "config.json has rope_scaling, attention_bias or mlp_bias; Llama denoisers without "
            "them are supported."
        )
    return BackboneConfig(
        width=raw["hidden_size"],
        blocks=raw["num_hidden_layers"],
        heads=raw["num_attention_heads"],
        kv_heads=raw.get("num_key_value_heads") or raw["num_attention_heads"],
        mlp_width=raw["intermediate_size"],
        vocab=raw["vocab_size"],
        context=raw["max_position_embeddings"],
        rope_theta=raw.get("rope_theta", 10000.0),
        norm_eps=raw["rms_norm_eps"],
        tied_head=raw.get("tie_word_embeddings", False),
    )


FAMILY = ModelFamily(
    name="diffullama",
    architectures=("LlamaForCausalLM",),
    model_types=("llama",),
    config=config,
    mask_tokens=(),
    shift=True,
    names={
        "embed": "model.embed_tokens",
        "norm": "model.norm",
        "head": "lm_head",
        "blocks.*.attention_norm": f"{BLOCK}.input_layernorm",
        "blocks.*.attention.q": f"{BLOCK}.self_attn.q_proj",
        "blocks.*.attention.k": f"{BLOCK}.self_attn.k_proj",
        "blocks.*.attention.v": f"{BLOCK}.self_attn.v_proj",
        "blocks.*.attention.out": f"{BLOCK}.self_attn.o_proj",
        "blocks.*.mlp_norm": f"{BLOCK}.post_attention_layernorm",
        "blocks.*.mlp.gate": f"{BLOCK}.mlp.gate_proj",
        "blocks.*.mlp.up": f"{BLOCK}.mlp.up_proj",
        "blocks.*.mlp.down": f"{BLOCK}.mlp.down_proj",
    },
)
