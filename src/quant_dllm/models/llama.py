"""What models with Llama's names share: most denoisers grew out of a Llama or a Qwen."""

from typing import Any

from quant_dllm.errors import ModelError
from quant_dllm.models.config import BackboneConfig

BLOCK = "model.layers.*"

OUTSIDE = {"embed": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}
ATTENTION = {
    "blocks.*.attention_norm": f"{BLOCK}.input_layernorm",
    "blocks.*.attention.q": f"{BLOCK}.self_attn.q_proj",
    "blocks.*.attention.k": f"{BLOCK}.self_attn.k_proj",
    "blocks.*.attention.v": f"{BLOCK}.self_attn.v_proj",
    "blocks.*.attention.q_norm": f"{BLOCK}.self_attn.q_norm",
    "blocks.*.attention.k_norm": f"{BLOCK}.self_attn.k_norm",
    "blocks.*.attention.out": f"{BLOCK}.self_attn.o_proj",
    "blocks.*.mlp_norm": f"{BLOCK}.post_attention_layernorm",
}
MLP = {f"blocks.*.mlp.{slot}": f"{BLOCK}.mlp.{slot}_proj" for slot in ("gate", "up", "down")}
EXPERTS = {
    f"blocks.*.mlp.experts.*.{slot}": f"{BLOCK}.mlp.experts.*.{slot}_proj"
    for slot in ("gate", "up", "down")
}
NAMES = OUTSIDE | ATTENTION | MLP

FIXED = {
    "hidden_act": "silu",
    "mlp_bias": False,
    "use_sliding_window": False,
    "use_mrope": False,
    "clip_qkv": None,
}
"""Switches that every denoiser of these families leaves where they are."""


def refuse_variants(raw: dict[str, Any], fixed: dict[str, Any]) -> None:
    """Refuse a configuration that turns a switch; false, zero and null are the same.

    Raises:
        ModelError: Names the switch.
    """
    for key, wanted in fixed.items():
        if (raw.get(key, wanted) or None) != (wanted or None):
            raise ModelError(
                f"config.json has {key}: {raw[key]!r}; {wanted!r} is wanted. "
                "This variant is not supported."
            )


def rope_theta(raw: dict[str, Any]) -> float:
    """Read the base of the rotation, which transformers 5 keeps in ``rope_parameters``.

    Raises:
        ModelError: The rotation is scaled.
    """
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise ModelError(
            f"config.json scales the rotary positions ({kind!r}); models whose positions are not "
            "scaled are supported."
        )
    return rope["rope_theta"] if "rope_theta" in rope else raw["rope_theta"]


def read(raw: dict[str, Any], **changes: Any) -> BackboneConfig:
    """Read a ``config.json`` with Llama's keys.

    Args:
        raw: Its content.
        changes: Fields that the family sets itself.

    Raises:
        ModelError: A switch is turned that the network does not have.
    """
    refuse_variants(raw, FIXED)
    fields = {
        "width": raw["hidden_size"],
        "blocks": raw["num_hidden_layers"],
        "heads": raw["num_attention_heads"],
        "kv_heads": raw.get("num_key_value_heads") or raw["num_attention_heads"],
        "head_width": raw.get("head_dim") or 0,
        "mlp_width": raw.get("intermediate_size") or 0,
        "vocab": raw["vocab_size"],
        "context": raw["max_position_embeddings"],
        "rope_theta": rope_theta(raw),
        "norm_eps": raw["rms_norm_eps"],
        "tied_head": raw.get("tie_word_embeddings", False),
    }
    return BackboneConfig(**fields | changes)
