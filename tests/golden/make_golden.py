"""Make the golden checkpoints: run once for each format version, never again for an old one.

    python tests/golden/make_golden.py

Writes ``v1-binary``, ``v1-uniform``, ``v1-compact`` and ``v1-finer`` beside this file, where they
are not there:
a random LLaDA of 24 channels whose blocks have one, two and three planes and a short last block,
packed, with the logits that it gave.
"""

import json
import os
import random
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

import quant_dllm
from quant_dllm.models.backbone import Backbone
from quant_dllm.models.llada import FAMILY

HERE = Path(__file__).parent
WORDS = ["<unk>", "<end>", *(f"w{i}" for i in range(61)), "<|mdm_mask|>"]
CONFIG = {
    "architectures": ["LLaDAModelLM"], "model_type": "llada", "d_model": 24, "n_layers": 1,
    "n_heads": 2, "n_kv_heads": 2, "mlp_hidden_size": 40, "vocab_size": 64, "embedding_size": 64,
    "max_sequence_length": 32, "rope_theta": 10000.0, "rms_norm_eps": 1e-5, "mask_token_id": 63,
}  # fmt: skip


def source(folder: Path) -> Path:
    """Write the 16-bit model."""
    torch.manual_seed(0)
    model = Backbone(FAMILY.config(CONFIG))
    tensors = {FAMILY.upstream(n): t.to(torch.bfloat16) for n, t in model.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG))
    words = {word: i for i, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>",
               "eos_token": "<end>"}  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(special))
    return folder


def main() -> None:
    """Quantize it four times."""
    os.environ["QUANT_DLLM_KERNEL"] = "reference"  # the definition, which the test runs too
    dice = random.Random(0)
    with tempfile.TemporaryDirectory() as name:
        text = Path(name) / "text.txt"
        text.write_text(" ".join(dice.choices(WORDS[2:-1], k=2000)))
        model = source(Path(name))
        settings = {"calibration.sequences": 8, "precision.block_size": 8}
        for kind, recipe, changes in (
            ("binary", "ladder-1-rounding", {"precision.ratio": 0.34}),
            ("uniform", "gptq-2bit", {"precision": "abmp", "precision.block_size": 8,
                                      "precision.ratio": 0.34}),
            ("compact", "ladder-1-rounding", {"precision.ratio": 0.34, "quantizer.scales": 6,
                                            "outside": "grouped", "outside.bits": 4,
                                            "outside.block_size": 10}),
            ("finer", "ladder-1-rounding", {"precision.ratio": 0.34, "outside": "grouped",
                                            "outside.bits": 4, "outside.block_size": 10,
                                            "outside.finer": 0.1, "outside.behind": True,
                                            "outside.drift": 1.0}),
        ):  # fmt: skip
            out = HERE / f"v1-{kind}"
            if out.is_dir():
                continue
            quant_dllm.quantize(model, out, recipe, settings=settings | changes, calibration=text)
            ids = torch.randint(63, (2, 16), generator=torch.Generator().manual_seed(1))
            logits = quant_dllm.load(out)(ids).logits
            save_file({"input_ids": ids, "logits": logits}, out / "golden.safetensors")


if __name__ == "__main__":
    main()
