"""ModernBERT used as a denoiser: transformers' own classes, wrapped.

References: Warner et al., "Smarter, Better, Faster, Longer", arXiv:2412.13663; dllm-hub's
ModernBERT base and large chat.
"""

import copy
from typing import Any

import torch

from quant_dllm.models.config import BackboneConfig
from quant_dllm.models.family import ModelFamily
from quant_dllm.models.llama import refuse_variants
from quant_dllm.models.native import NativeNetwork, Parts
from quant_dllm.models.stage import Group, Stage

PARTS = Parts(
    encoder="model",
    embeddings="model.embeddings",
    layers="model.layers",
    norm="model.final_norm",
    head="head",
    embedding="embed.tok_embeddings",
    bias="decoder.bias",
)


def config(raw: dict[str, Any]) -> BackboneConfig:
    """Read the numbers that the rest of the package asks for; transformers reads the others."""
    fixed = {"tie_word_embeddings": True, "decoder_bias": True, "attention_bias": False}
    refuse_variants(raw, fixed | {"mlp_bias": False, "norm_bias": False})
    return BackboneConfig(
        width=raw["hidden_size"],
        blocks=raw["num_hidden_layers"],
        heads=raw["num_attention_heads"],
        kv_heads=raw["num_attention_heads"],
        mlp_width=raw["intermediate_size"],
        vocab=raw["vocab_size"],
        context=raw["max_position_embeddings"],
        rope_theta=0.0,  # two of them, local and global: transformers' own tables hold them
        norm_eps=raw["norm_eps"],
        tied_head=True,
    )


def stages(index: int) -> tuple[Stage, ...]:
    """Name the linear layers of a layer; the first one has no norm in front of its attention."""
    norm = "layer.attn_norm" if index else None
    return (
        (Group(("layer.attn.Wqkv",), norm),),
        (Group(("layer.attn.Wo",)),),
        (Group(("layer.mlp.Wi",), "layer.mlp_norm"),),
        (Group(("layer.mlp.Wo",)),),
    )


def build(config: BackboneConfig, raw: dict[str, Any]) -> NativeNetwork:
    """Make transformers' model on the meta device, and its twin of one head."""
    from transformers import ModernBertConfig, ModernBertForMaskedLM

    native = ModernBertConfig.from_dict(raw)
    native.reference_compile = False
    small = copy.deepcopy(native)
    small.hidden_size, small.num_attention_heads = config.head_width, 1
    small.intermediate_size, small.vocab_size, small.pad_token_id = 1, 1, 0

    def make(chosen: Any) -> Any:
        return ModernBertForMaskedLM._from_config(
            chosen, attn_implementation="sdpa", dtype=torch.float32
        )

    with torch.device("meta"):
        model = make(native)
    return NativeNetwork(model, make(small), PARTS, [stages(i) for i in range(config.blocks)])


FAMILY = ModelFamily(
    name="modernbert",
    models="dllm-hub ModernBERT-base-chat and -large-chat",
    architectures=("ModernBertForMaskedLM",),
    model_types=("modernbert",),
    config=config,
    build=build,
    mask_tokens=("[MASK]",),
    names={
        "embed.tok_embeddings": "model.embeddings.tok_embeddings",
        "embed.norm": "model.embeddings.norm",
        "blocks.*.layer.attn_norm": "model.layers.*.attn_norm",
        "blocks.*.layer.attn.Wqkv": "model.layers.*.attn.Wqkv",
        "blocks.*.layer.attn.Wo": "model.layers.*.attn.Wo",
        "blocks.*.layer.mlp_norm": "model.layers.*.mlp_norm",
        "blocks.*.layer.mlp.Wi": "model.layers.*.mlp.Wi",
        "blocks.*.layer.mlp.Wo": "model.layers.*.mlp.Wo",
        "norm": "model.final_norm",
        "head.dense": "head.dense",
        "head.norm": "head.norm",
        "decoder": "decoder",
    },
)
