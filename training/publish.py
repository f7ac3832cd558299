"""Put what `train_tiny.py` made into the package, with its texts and its card.

    python training/publish.py

Measures the bound on the held-out stories, lets the model write, and writes the model card from
the records of sampling and training; copies the training record to ``benchmarks/results``.
"""

import argparse
import json
import shutil
from pathlib import Path

from quant_dllm import evaluate, generate, load
from quant_dllm.checkpoint.folder import Folder

HERE = Path(__file__).parent
ASSETS = HERE.parent / "src" / "quant_dllm" / "assets" / "tiny"
RESULTS = HERE.parent / "benchmarks" / "results"
PROMPT = "Once upon a time, there was a little dog named Max. He"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=HERE / "data")
    parser.add_argument("--runs", type=Path, default=HERE / "runs")
    args = parser.parse_args()
    ASSETS.mkdir(parents=True, exist_ok=True)
    for path in (args.runs / "tiny").iterdir():
        shutil.copyfile(path, ASSETS / path.name)
    for split in ("calibration", "validation", "heldout"):
        shutil.copyfile(args.data / f"{split}.txt.gz", ASSETS / f"{split}.txt.gz")
    corpus = json.loads((args.data / "corpus.json").read_text())
    record = json.loads((args.runs / "train_tiny.json").read_text())
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "train_tiny.json").write_text(json.dumps(record | {"corpus": corpus}) + "\n")
    (ASSETS / "README.md").write_text(card(corpus, record))


def card(corpus: dict, record: dict) -> str:
    """Write the model card from what sampling and training recorded, and from the model itself."""
    model = load(ASSETS)
    found = evaluate(model, text=ASSETS / "heldout.txt.gz")
    story = generate(model, PROMPT, length=128, block_length=8, temperature=0.7, seed=1)
    config = json.loads((ASSETS / "config.json").read_text())
    shown = record["curve"][:: max(1, len(record["curve"]) // 10)]
    curve = [*shown, {"minutes": record["minutes"], "tokens": record["tokens"],
                      "validation": record["nelbo_nats_per_token"]}]  # fmt: skip
    lines = [f"| {p['minutes']:.0f} | {p['tokens'] / 1e6:.2f} | {p['validation']:.3f} |"
             for p in curve]  # fmt: skip
    facts = config | corpus | record
    return (HERE / "card.md").read_text().format(
        **facts | {
            "parameters": record["parameters"] / 1e6, "context": config["max_sequence_length"],
            "megabytes": Folder(ASSETS).weight_bytes / 1e6,
            "sampled": corpus["sampled_tokens"] / 1e6, "tokens": record["tokens"] / 1e6,
            "train_tokens": corpus["train_tokens"] / 1e6,
            "epochs": record["tokens"] / corpus["train_tokens"], "sequences": found.sequences,
            "window": found.length, "draws": found.draws, "nelbo": found.nelbo,
            "stderr": found.nelbo_stderr, "perplexity": found.perplexity,
            "curve": "\n".join(lines), "calls": story.calls,
            "story": (PROMPT + story.text).strip().replace("\n", "\n> "),
        }
    )  # fmt: skip


if __name__ == "__main__":
    main()
