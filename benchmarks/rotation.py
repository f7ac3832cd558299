"""Rotate a model's residual stream and values by orthogonal matrices, its function unchanged.

    python benchmarks/rotation.py tiny OUT

Norms' weights move into the layers behind them, and the head is written beside the embedding where
they are tied. Then the stream x becomes x Q, and the values of a head v becomes v R: Q is undone in
what reads the stream, R in the output projection. Inputs of the MLP's last layer stay as they are:
what is in front of them is no linear layer. Q and R are drawn from all orthogonal matrices.

Reference: Ashkboos et al., "QuaRot", arXiv:2404.00456, without its rotations at run time.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from quant_dllm.models.load import load
from quant_dllm.models.source import Source, open_model
from quant_dllm.pipeline.job import COPIED

READERS = ("attention.q", "attention.k", "attention.v", "mlp.gate", "mlp.up")
NORMS = {"attention": "attention_norm", "mlp": "mlp_norm"}
WRITERS = ("attention.out", "mlp.down")


def orthogonal(size: int, dice: torch.Generator) -> Tensor:
    """Draw an orthogonal matrix evenly."""
    q, r = torch.linalg.qr(torch.randn(size, size, generator=dice, dtype=torch.float64))
    return q * r.diagonal().sign()


def rotated(source: Source, seed: int) -> dict[str, Tensor]:
    """Return the tensors of the rotated model by their names in the network.

    The model has full attention, no bias, no norm of queries, and as many value heads as others.
    """
    config, dice = source.config, torch.Generator().manual_seed(seed)
    t = {name: source.tensor(name).double() for name in source.empty().state_dict()}
    t.setdefault("head.weight", t["embed.weight"])
    q = orthogonal(config.width, dice)
    t["embed.weight"] = t["embed.weight"] @ q
    t["head.weight"] = t["head.weight"] * t["norm.weight"] @ q
    t["norm.weight"] = torch.ones(config.width)
    for block in (f"blocks.{i}." for i in range(config.blocks)):
        for name in READERS:
            norm = t[block + NORMS[name.partition(".")[0]] + ".weight"]
            t[f"{block}{name}.weight"] = t[f"{block}{name}.weight"] * norm @ q
        for name in WRITERS:
            t[f"{block}{name}.weight"] = q.T @ t[f"{block}{name}.weight"]
        for name in NORMS.values():
            t[f"{block}{name}.weight"] = torch.ones(config.width)
        r = torch.block_diag(*(orthogonal(config.head_width, dice) for _ in range(config.heads)))
        t[f"{block}attention.v.weight"] = r.T @ t[f"{block}attention.v.weight"]
        t[f"{block}attention.out.weight"] = t[f"{block}attention.out.weight"] @ r
    return {name: tensor.float().contiguous() for name, tensor in t.items()}


def write(model: str, out: Path, seed: int = 0) -> float:
    """Write the rotated model; return by how much its logits are off at most, against their size.

    The size is their root mean square over some random canvases.
    """
    source = open_model(model)
    out.mkdir(parents=True)
    for pattern in (*COPIED, "config.json"):
        for file in source.folder.path.glob(pattern):
            shutil.copy(file, out / file.name)
    config = json.loads((out / "config.json").read_text()) | {"torch_dtype": "float32"}
    if source.config.tied_head:
        config["tie_word_embeddings"] = False
    (out / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    tensors = {source.family.upstream(k): v for k, v in rotated(source, seed).items()}
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    length = min(64, source.config.context)
    dice = torch.Generator().manual_seed(0)
    canvas = torch.randint(source.config.vocab, (2, length), generator=dice)
    with torch.no_grad():
        plain, turned = (load(m)(canvas).logits.float() for m in (model, out))
    return ((plain - turned).abs().max() / plain.square().mean().sqrt()).item()


def main() -> None:
    """Write one model."""
    parser = argparse.ArgumentParser(description="Rotate a model.")
    parser.add_argument("model")
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    print(f"logits are off by {write(asked.model, asked.out, asked.seed):.1e} of their size")


if __name__ == "__main__":
    main()
