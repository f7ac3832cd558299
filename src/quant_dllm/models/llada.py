"""LLaDA 8B and 1.5, and the bundled ``tiny``: full attention, logits at their own position.

Reference: Nie et al., "Large Language Diffusion Models", arXiv:2502.09992.
"""

from typing import Any

from quant_dllm.errors import ModelError
from quant_dllm.models.config import BackboneConfig
from quant_dllm.models.family import ModelFamily
from quant_dllm.models.scoring import Scoring

BLOCK = "model.transformer.blocks.*"

FIXED = {
    "block_type": "llama",
    "block_group_size": 1,
    "layer_norm_type": "rms",
    "activation_type": "silu",
    "alibi": False,
    "rope": True,
    "include_bias": False,
    "include_qkv_bias": False,
    "attention_layer_norm": False,
    "input_emb_norm": False,
    "scale_logits": False,
    "weight_tying": False,
}
"""Switches of upstream's configuration that every published LLaDA leaves where they are."""


def config(raw: dict[str, Any]) -> BackboneConfig:
    """Read upstream's ``config.json``; ``mlp_ratio`` in it is ignored there too."""
    for key, wanted in FIXED.items():
        if raw.get(key, wanted) != wanted:
            raise ModelError(
                f"config.json has {key}: {raw[key]!r}; LLaDA models have {wanted!r}. "
                "This variant is not supported."
            )
    return BackboneConfig(
        width=raw["d_model"],
        blocks=raw["n_layers"],
        heads=raw["n_heads"],
        kv_heads=raw.get("n_kv_heads") or raw["n_heads"],
        mlp_width=raw["mlp_hidden_size"],
        vocab=raw.get("embedding_size") or raw["vocab_size"],
        context=raw["max_sequence_length"],
        rope_theta=raw["rope_theta"],
        norm_eps=raw["rms_norm_eps"],
        rotary_in_float32=raw.get("rope_full_precision", True),
    )


FAMILY = ModelFamily(
    name="llada",
    models="LLaDA-8B Base and Instruct, LLaDA-1.5; the bundled tiny",
    architectures=("LLaDAModelLM",),
    model_types=("llada",),
    config=config,
    mask_tokens=("<|mdm_mask|>",),
    mask_token_id=126336,
    end_tokens=("<|eot_id|>",),
    scoring=Scoring(
        guidance={
            "gpqa_main_n_shot": 0.5,
            "truthfulqa_mc2": 2.0,
            "arc_challenge": 0.5,
            "hellaswag": 0.5,
            "piqa": 0.5,
        }
    ),
    names={
        "embed": "model.transformer.wte",
        "norm": "model.transformer.ln_f",
        "head": "model.transformer.ff_out",  # blocks.*.ff_out is another layer
        "blocks.*.attention_norm": f"{BLOCK}.attn_norm",
        "blocks.*.attention.q": f"{BLOCK}.q_proj",
        "blocks.*.attention.k": f"{BLOCK}.k_proj",
        "blocks.*.attention.v": f"{BLOCK}.v_proj",
        "blocks.*.attention.out": f"{BLOCK}.attn_out",
        "blocks.*.mlp_norm": f"{BLOCK}.ff_norm",
        "blocks.*.mlp.gate": f"{BLOCK}.ff_proj",
        "blocks.*.mlp.up": f"{BLOCK}.up_proj",
        "blocks.*.mlp.down": f"{BLOCK}.ff_out",
    },
)
