"""LLaDA 2.0 and 2.1: experts chosen in groups, a fused qkv, block-causal attention.

Token editing of 2.1 is a setting of the sampler (``editing``); 2.2's insertion and deletion change
the length of a canvas and are not supported.

Reference: Bie et al., "LLaDA2.0", arXiv:2512.15745.
"""

from typing import Any

from quant_dllm.models import llama
from quant_dllm.models.config import BackboneConfig, Mixture
from quant_dllm.models.family import ModelFamily, attention_block
from quant_dllm.models.sampling import Sampling

FIXED = {"norm_head": False, "use_qk_norm": True, "use_rmsnorm": True, "score_function": "sigmoid"}
"""Switches of upstream's configuration that the published models leave where they are."""


def config(raw: dict[str, Any]) -> BackboneConfig:
    """Read upstream's ``config.json``; attention is in blocks of 32 unless it says otherwise."""
    llama.refuse_variants(raw, FIXED)
    width = raw["moe_intermediate_size"]
    mixture = Mixture(
        experts=raw["num_experts"],
        chosen=raw["num_experts_per_tok"],
        width=width,
        shared_width=width * (raw.get("num_shared_experts") or 0),
        dense_blocks=raw.get("first_k_dense_replace", 0),
        scores="sigmoid",
        bias=True,
        groups=raw["n_group"],
        chosen_groups=raw["topk_group"],
        renormalise=raw["num_experts_per_tok"] > 1,
        scale=raw["routed_scaling_factor"],
    )
    head = raw.get("head_dim") or raw["hidden_size"] // raw["num_attention_heads"]
    return llama.read(
        raw, mixture=mixture, fused_qkv=True, qkv_bias=raw.get("use_qkv_bias", False),
        out_bias=raw.get("use_bias", False), qk_norm=True, head_width=head,
        rotary_width=int(head * raw.get("partial_rotary_factor", 1.0)),
        attention_block=attention_block(raw, 32),
    )  # fmt: skip


BLOCK = llama.BLOCK
SHARED = {
    f"blocks.*.mlp.shared.{slot}": f"{BLOCK}.mlp.shared_experts.{slot}_proj"
    for slot in ("gate", "up", "down")
}
FAMILY = ModelFamily(
    name="llada2",
    models="LLaDA2.0 and LLaDA2.1, mini and flash",
    architectures=("LLaDA2MoeModelLM",),
    model_types=("llada2_moe",),
    config=config,
    mask_tokens=("<|mask|>",),
    mask_token_id=156895,
    end_tokens=("<|role_end|>",),
    sampling=Sampling(threshold=0.95, cache="exact"),
    names=llama.OUTSIDE | llama.MLP | llama.EXPERTS | SHARED | {
        "embed": "model.word_embeddings",
        "blocks.*.attention_norm": f"{BLOCK}.input_layernorm",
        "blocks.*.attention.qkv": f"{BLOCK}.attention.query_key_value",
        "blocks.*.attention.q_norm": f"{BLOCK}.attention.query_layernorm",
        "blocks.*.attention.k_norm": f"{BLOCK}.attention.key_layernorm",
        "blocks.*.attention.out": f"{BLOCK}.attention.dense",
        "blocks.*.mlp_norm": f"{BLOCK}.post_attention_layernorm",
        "blocks.*.mlp.router": f"{BLOCK}.mlp.gate",
    },
)  # fmt: skip
