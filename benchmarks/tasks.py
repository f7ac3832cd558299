"""Write local definitions of lm-eval tasks, so that scores can be had without a network.

    python benchmarks/tasks.py FOLDER
    quant-dllm evaluate OUT --tasks story_cloze,blimp_transitive_local,piqa_local,gsm8k_local \
        --task-path FOLDER --limit 100 --draws 32

``story_cloze`` is made of the bundled held-out stories: which of four sentences goes on, the other
three from other stories. The others are those of the data folder (``QUANT_DLLM_DATA``, else
``../shared/data``), see its README for their sources.
"""

import gzip
import json
import os
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from quant_dllm.calibration.corpus import read_text
from quant_dllm.models.bundled import bundled_text
from quant_dllm.models.source import open_model

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("QUANT_DLLM_DATA", ROOT.parent / "shared" / "data")) / "benchmarks"
CHOICE = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{validation: {file}}}}}
validation_split: validation
output_type: multiple_choice
doc_to_text: "{{{{query}}}}"
doc_to_choice: choices
doc_to_target: gold
target_delimiter: "{delimiter}"
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
"""
WRITING = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: generate_until
doc_to_text: "Question: {{{{context}}}}\\nAnswer:"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["\\n\\n"], max_gen_toks: {tokens}}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
"""


def define(
    folder: Path, name: str, template: str, rows: list[dict], delimiter: str = " ", tokens: int = 64
) -> None:
    """Write one task and its questions.

    Args:
        folder: Where to.
        name: Of the task.
        template: ``CHOICE``: query, choices and gold of each row; ``WRITING``: context and answer.
        rows: Questions.
        delimiter: What stands between a question and its answer.
        tokens: Of a written answer, at most.
    """
    file = folder / f"{name}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = template.format(name=name, file=file.resolve(), delimiter=delimiter, tokens=tokens)
    (folder / f"{name}.yaml").write_text(text)


def read(name: str) -> list[dict]:
    """Read questions of the data folder."""
    return [json.loads(line) for line in gzip.open(DATA / f"{name}.jsonl.gz", "rt")]


def cloze(seed: int = 0) -> Iterator[dict]:
    """Yield openings of held-out stories, each with the sentence that follows and three others."""
    path = bundled_text(open_model("tiny"), "heldout")
    assert path is not None, "tiny has held-out stories"
    text, dice = read_text(path), random.Random(seed)
    stories = [re.split(r"(?<=[.!?])\s+", s.strip()) for s in text.split("<|endoftext|>")]
    stories = [s for s in stories if len(s) >= 8]
    nexts = [story[5] for story in stories]
    for i, story in enumerate(stories):
        others = dice.sample([s for j, s in enumerate(nexts) if j != i], 3)
        gold = dice.randrange(4)
        choices = [*others[:gold], story[5], *others[gold:]]
        yield {"query": " ".join(story[:5]), "choices": choices, "gold": gold}


def main() -> None:
    """Write all definitions."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    define(folder, "story_cloze", CHOICE, list(cloze()))
    for name in ("arc_easy", "piqa", "copa"):
        define(folder, f"{name}_local", CHOICE, read(name))
    for path in sorted((DATA / "blimp").glob("*.jsonl.gz")):
        name = path.name.removesuffix(".jsonl.gz")
        rows = [
            {"query": "", "choices": [row["sentence_good"], row["sentence_bad"]], "gold": 0}
            for row in read(f"blimp/{name}")
        ]
        define(folder, f"blimp_{name}_local", CHOICE, rows, delimiter="")
    define(folder, "gsm8k_local", WRITING, read("gsm8k"))
    print(f"wrote {len(list(folder.glob('*.yaml')))} tasks to {folder}")


if __name__ == "__main__":
    main()
