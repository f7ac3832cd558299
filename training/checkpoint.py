"""LLaDA's own form of a checkpoint."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from quant_dllm.models.backbone import Backbone
from quant_dllm.models.llada import FAMILY
from stories15m import END, MASK, UNKNOWN


def save_model(out: Path, model: Backbone, data: Path) -> None:
    """Write a network in bfloat16, with the tokenizer that lies in `data`."""
    out.mkdir(parents=True, exist_ok=True)
    tensors = {
        FAMILY.upstream(name): tensor.to(torch.bfloat16).cpu().contiguous()
        for name, tensor in model.state_dict().items()
    }
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    c = model.config
    config = {
        "architectures": ["LLaDAModelLM"], "model_type": "llada", "d_model": c.width,
        "n_layers": c.blocks, "n_heads": c.heads, "n_kv_heads": c.kv_heads,
        "mlp_hidden_size": c.mlp_width, "vocab_size": c.vocab, "embedding_size": c.vocab,
        "max_sequence_length": c.context, "rope_theta": c.rope_theta, "rms_norm_eps": c.norm_eps,
        "block_type": "llama", "block_group_size": 1, "layer_norm_type": "rms",
        "activation_type": "silu", "rope": True, "rope_full_precision": True, "alibi": False,
        "include_bias": False, "include_qkv_bias": False, "weight_tying": False,
        "scale_logits": False, "init_device": "meta", "eos_token_id": 1, "pad_token_id": 1,
        "mask_token_id": c.vocab - 1, "torch_dtype": "bfloat16",
    }  # fmt: skip
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (out / "tokenizer.json").write_bytes((data / "tokenizer.json").read_bytes())
    words = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": UNKNOWN, "eos_token": END,
             "pad_token": END, "additional_special_tokens": [MASK], "model_max_length": c.context,
             "clean_up_tokenization_spaces": False}  # fmt: skip
    (out / "tokenizer_config.json").write_text(json.dumps(words, indent=2) + "\n")
