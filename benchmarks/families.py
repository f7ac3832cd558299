"""Every family, every step, as a table: measured on the tiny random checkpoints of the tests.

    export PYTHONPATH=. QUANT_DLLM_KERNEL=reference
    .venv-4.57.6/bin/python benchmarks/families.py > a.jsonl
    .venv-5.23.0/bin/python benchmarks/families.py > b.jsonl
    python benchmarks/families.py --table a.jsonl b.jsonl

A row says how far our logits are from upstream's, how far those of the packed folder are from the
rounded network's, how many calls a text took, and how far transformers' logits are from ours.
"""

import argparse
import json
import random
import sys
import tempfile
from pathlib import Path

import torch
import transformers

import quant_dllm
from quant_dllm.linear import QuantLinear
from quant_dllm.models.load import load
from quant_dllm.models.source import FAMILIES
from quant_dllm.report.table import markdown
from tests.families import EXAMPLES, LENGTH

SETTINGS = {
    "calibration.sequences": 8, "calibration.length": LENGTH, "precision.block_size": 16,
}  # fmt: skip


def record(name: str, folder: Path, text: Path) -> dict:
    """Take one family down the whole road."""
    example = EXAMPLES[name](folder / name, FAMILIES.get(name))
    told = {"attention_block": example.attention_block}
    model, out = load(example.folder, **told), folder / f"{name}-packed"
    made = quant_dllm.quantize(example.folder, out, settings=SETTINGS, calibration=text, **told)
    packed, rounded = load(out), load(example.folder, **told)
    for slot, module in packed.backbone.named_modules():
        if isinstance(module, QuantLinear):
            rounded.backbone.get_submodule(slot).weight.data = module.weight.dequantize()
    story = quant_dllm.generate(packed, "w5 w6 w7", length=16)
    found = quant_dllm.evaluate(packed, model, text, sequences=4, length=LENGTH, draws=4)
    hosted = transformers.AutoModel.from_pretrained(out, dtype=torch.float32)
    ids = example.input_ids

    def distance(a, b) -> float:
        return (a - b).abs().max().item()

    return {
        "family": name,
        "golden_difference": distance(model(ids).logits, example.logits),
        "layers": len(made.layers),
        "code_bits": made.bits.code,
        "round_trip_difference": distance(packed(ids).logits, rounded(ids).logits),
        "calls": story.calls,
        "tokens": len(story.token_ids),
        "kl": found.kl,
        "nelbo": found.nelbo,
        "transformers": {
            transformers.__version__: distance(hosted(ids).logits, packed(ids).logits)
        },
    }


def table(paths: list[Path]) -> str:
    """Join records of several versions of transformers."""
    joined: dict[str, dict] = {}
    for path in paths:
        for line in path.read_text().splitlines():
            row = json.loads(line)
            known = joined.setdefault(row["family"], row)
            known["transformers"] |= row["transformers"]
    versions = sorted({v for row in joined.values() for v in row["transformers"]})
    columns = ("family", "golden difference", "quantized", "packed round trip", "generates",
               "evaluates", *(f"transformers {v}" for v in versions))  # fmt: skip
    rows = [
        (
            row["family"],
            f"{row['golden_difference']:.0e}",
            f"{row['layers']} layers, {row['code_bits']:.2f} bits",
            f"{row['round_trip_difference']:.0e}",
            f"{row['tokens']} tokens, {row['calls']} calls",
            f"KL {row['kl']:.2f}",
            *(f"{row['transformers'][v]:.0e}" if v in row["transformers"] else "-"
              for v in versions),
        )
        for row in joined.values()
    ]  # fmt: skip
    return markdown(columns, rows)


def main() -> None:
    """Print records, or the table of several files of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", nargs="+", type=Path)
    args = parser.parse_args()
    if args.table:
        print(table(args.table), end="")
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = folder / "text.txt"
        words = random.Random(0).choices([f"w{i}" for i in range(5, 60)], k=2000)
        text.write_text(" ".join(words))
        for family in sorted(FAMILIES.targets):
            print(json.dumps(record(family, folder, text)))
            sys.stdout.flush()


if __name__ == "__main__":
    main()
