"""LLaDA-MoE: LLaDA's denoising on a network of experts; its ``model_type`` is ``llada`` too.

Reference: Zhu et al., "LLaDA-MoE", arXiv:2509.24389.
"""

from typing import Any

from quant_dllm.errors import ModelError
from quant_dllm.models import llama
from quant_dllm.models.config import BackboneConfig, Mixture
from quant_dllm.models.family import ModelFamily

FIXED = {
    "attention_bias": False,
    "partial_rotary_factor": 1.0,
    "moe_router_enable_expert_bias": None,
    "moe_router_score_function": None,
    "shared_expert_intermediate_size": None,
}
"""Switches of upstream's configuration that the published model leaves where they are."""


def config(raw: dict[str, Any]) -> BackboneConfig:
    """Read upstream's ``config.json``."""
    llama.refuse_variants(raw, FIXED)
    sparse = raw.get("moe_layer_freq") or [1] * raw["num_hidden_layers"]
    dense = sparse.index(1) if 1 in sparse else len(sparse)
    if not all(sparse[dense:]):
        raise ModelError(
            f"config.json has moe_layer_freq: {sparse}; blocks without experts are supported in "
            "front of those with experts only."
        )
    mixture = Mixture(
        experts=raw["num_experts"],
        chosen=raw["num_experts_per_tok"],
        width=raw["expert_intermediate_size"],
        dense_blocks=dense,
        renormalise=bool(raw.get("norm_topk_prob")),
        scale=raw.get("routed_scaling_factor") or 1.0,
    )
    return llama.read(
        raw, qk_norm=bool(raw.get("qk_layernorm")), mixture=mixture,
        mlp_width=raw.get("dense_intermediate_size") or 0,
    )  # fmt: skip


FAMILY = ModelFamily(
    name="llada-moe",
    models="LLaDA-MoE-7B-A1B Base and Instruct",
    architectures=("LLaDAMoEModelLM",),
    model_types=("lladamoe",),  # dllm's name for it
    config=config,
    mask_tokens=("<|mask|>",),
    mask_token_id=156895,
    end_tokens=("<|role_end|>",),
    names=llama.NAMES | llama.EXPERTS | {"blocks.*.mlp.router": f"{llama.BLOCK}.mlp.gate"},
)
