"""Put together the second model of the comparisons: ``stories15M_mdlm``, a shifted Llama denoiser.

    python benchmarks/second_model.py OUT

Reads the data folder (``QUANT_DLLM_DATA``, else ``../shared/data``) and writes a model folder with
its tokenizer, and the bundled stories as texts whose separator is this model's.
"""

import argparse
import gzip
import json
import os
import shutil
import sys
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, normalizers
from tokenizers.models import BPE

from quant_dllm.models.source import locate

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("QUANT_DLLM_DATA", ROOT.parent / "shared" / "data"))
SEPARATOR = "<s>"  # what stories15M was shown between two stories


def tokenizer(pieces: list[bytes]) -> Tokenizer:
    """Make llama's tokenizer of its pieces, ids unchanged."""
    from stories15m import FIRST_PIECE, split_points

    words = {i: p.decode("utf-8", "replace").replace(" ", "▁") for i, p in enumerate(pieces)}
    words |= {0: "<unk>", 1: "<s>", 2: "</s>"} | {3 + b: f"<0x{b:02X}>" for b in range(256)}
    vocab = {word: i for i, word in sorted(words.items(), reverse=True)}
    rank = {words[i]: i for i in range(FIRST_PIECE, len(pieces))}
    merges = [pair for word in rank for pair in split_points(word, rank)]
    made = Tokenizer(BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
         decoders.Strip(" ", 1, 0)]
    )  # fmt: skip
    special = [AddedToken(t, special=True, normalized=False) for t in ("<unk>", "<s>", "</s>")]
    made.add_special_tokens(special)
    return made


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path, help="a folder that is not there yet")
    out = parser.parse_args().out
    out.mkdir(parents=True)
    source = DATA / "stories15M_mdlm"
    for name in ("config.json", "model.safetensors"):
        shutil.copy(source / name, out / name)
    sys.path.insert(0, str(ROOT / "training"))
    import stories15m

    tokenizer(stories15m.read_pieces()).save(str(out / "tokenizer.json"))
    words = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>",
             "eos_token": SEPARATOR, "pad_token": "</s>",
             "clean_up_tokenization_spaces": False}  # fmt: skip
    (out / "tokenizer_config.json").write_text(json.dumps(words, indent=1) + "\n")
    for split in ("calibration", "validation", "heldout"):
        text = gzip.decompress((locate("tiny") / f"{split}.txt.gz").read_bytes()).decode()
        (out / f"{split}.txt").write_text(text.replace("<|endoftext|>", SEPARATOR))


if __name__ == "__main__":
    main()
