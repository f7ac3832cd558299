"""Score the cloze task of held-out stories: which of four sentences goes on?

    python benchmarks/cloze.py tiny tiny                        # the 16-bit model
    python benchmarks/cloze.py tiny OUT OUT2                    # what was quantized from it
    python benchmarks/cloze.py second FOLDER

Questions are those of `tasks.cloze`; a sentence scores by its Monte-Carlo likelihood, all models
under the same masks. Records are JSON lines in ``benchmarks/results/cloze.jsonl``.
"""

import argparse
import json
from itertools import islice
from typing import Any

import torch

import records
from quant_dllm.checkpoint.folder import MANIFEST
from quant_dllm.evaluation.answers import Answer, log_likelihoods
from quant_dllm.models.load import load
from quant_dllm.models.source import locate
from quant_dllm.record import BASE
from tasks import cloze

RESULTS = records.RESULTS / "cloze.jsonl"


def score(model: str, folder: str, items: int, draws: int) -> dict[str, Any]:
    """Answer the first questions by one model."""
    manifest = locate(folder) / MANIFEST
    made = json.loads(manifest.read_text()) if manifest.is_file() else {}
    loaded = load(folder).unpack() if made else load(folder)
    questions = list(islice(cloze(), items))

    def ids(text: str) -> tuple[int, ...]:
        return tuple(loaded.tokenizer(text, add_special_tokens=False)["input_ids"])

    answers = []
    for question in questions:
        before = ids(question["query"])
        whole = (ids(f"{question['query']} {choice}") for choice in question["choices"])
        answers += [Answer(before, text[len(before) :], draws=draws) for text in whole]
    scores = torch.tensor(log_likelihoods(loaded, answers, loaded.family.scoring)).view(-1, 4)
    right = scores.argmax(1) == torch.tensor([question["gold"] for question in questions])
    accuracy = right.double().mean().item()
    return {
        "what": "cloze", "model": model, "recipe": made.get("recipe", {}).get("name", BASE),
        "accuracy": accuracy, "stderr": (accuracy * (1 - accuracy) / (items - 1)) ** 0.5,
        "items": items, "draws": draws,
    } | records.where()  # fmt: skip


def main() -> None:
    """Score models, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", choices=("tiny", "second"), help="what all were made from")
    parser.add_argument("folders", nargs="+", help="a checkpoint, at 16 bits or packed")
    parser.add_argument("--items", type=int, default=200)
    parser.add_argument("--draws", type=int, default=8)
    asked = parser.parse_args()
    for folder in asked.folders:
        record = score(asked.model, folder, asked.items, asked.draws)
        print(json.dumps(record), flush=True)
        with RESULTS.open("a") as file:
            records.append(file, record)


if __name__ == "__main__":
    main()
