"""Sections of ``docs/results.md`` about levers that were tried, made of the records of trials."""

from typing import Any

import records
from levers import ALONE, ROTATED, RUNG, TRIALS
from quant_dllm.report.table import Row, Spread, markdown

MODELS = {"tiny": "`tiny`", "second": "`stories15M_mdlm`"}
NAMED = {RUNG: "the fourth rung", ALONE: "tuned end to end alone,"}
STUDENT = {2: 12.71, 3: 4.30}  # Student's t of 95 %, by seeds

Table = dict[str, Row]


def left_out(tables: dict[str, Table]) -> str:
    """Show what was tried, by what it changed, seed by seed."""
    found = {
        (r["model"], r["split"], r["trial"], r["seed"]): r
        for r in records.read(records.RESULTS / "trials.jsonl")
    }
    told = ""
    for recipe, name in NAMED.items():
        lines = [
            line for group in dict.fromkeys(key[:3] for key in found)
            if group[2] in TRIALS and TRIALS[group[2]].of == recipe != group[2]
            for line in [_trial(group, found, tables)] if line
        ]  # fmt: skip
        if lines:
            columns = ("model", "text", f"{name} with", "KL", "difference", "seeds", "helps",
                       "date")  # fmt: skip
            told += "\n" + markdown(columns, lines)
    if told:
        told = (
            "## What was tried\n\nDifferences of KL to the recipe that was changed, at the same "
            "seeds, nats. Levers are chosen on validation text.\n" + told
        )
    return told + rotations(found, tables)


def _trial(
    group: tuple[str, str, str], found: dict[Any, dict[str, Any]], tables: dict[str, Table]
) -> tuple[str, ...] | None:
    model, split, trial = group
    recipe = TRIALS[trial].of
    base = {key[3]: r["evaluation"]["kl"] for key, r in found.items()
            if key[:3] == (model, split, recipe)}  # fmt: skip
    if split == "heldout":
        base |= {run.seed: run.evaluation["kl"] for run in tables[model][recipe].runs}
    mine = {key[3]: r for key, r in found.items() if key[:3] == group and key[3] in base}
    if not mine:
        return None
    kl = Spread.of([r["evaluation"]["kl"] for r in mine.values()])
    change = Spread.of([r["evaluation"]["kl"] - base[seed] for seed, r in mine.items()])
    date = max(r["date"] for r in mine.values())
    return (MODELS[model], split, TRIALS[trial].about, kl.text(4), change.text(4), str(len(mine)),
            verdict(change, len(mine)), date)  # fmt: skip


def verdict(change: Spread, seeds: int) -> str:
    """Say whether a change of KL is one."""
    if seeds not in STUDENT:
        return "one seed"
    if abs(change.mean) < STUDENT[seeds] * change.deviation / seeds**0.5:
        return "unclear"
    return "yes" if change.mean < 0 else "no: worse"


def rotations(found: dict[Any, dict[str, Any]], tables: dict[str, Table]) -> str:
    """Compare methods on the rotated models with the same on the models as they are."""
    lines = []
    for model in MODELS:
        for recipe in ROTATED:
            turned = {key[3]: r for key, r in found.items() if key[0] == f"{model}, rotated"
                      and key[2] == recipe}  # fmt: skip
            plain = {r.seed: r.evaluation for r in tables[model][recipe].runs}
            pairs = [(r["evaluation"], plain[s]) for s, r in turned.items() if s in plain]
            if not pairs:
                continue
            change = Spread.of([a["kl"] - b["kl"] for a, b in pairs])
            lines.append((
                MODELS[model], recipe, f"{pairs[0][0]['bits']['stored']:.3f}",
                Spread.of([b["kl"] for _, b in pairs]).text(4),
                Spread.of([a["kl"] for a, _ in pairs]).text(4), change.text(4), str(len(pairs)),
                verdict(change, len(pairs)), max(r["date"] for r in turned.values()),
            ))  # fmt: skip
    if not lines:
        return ""
    columns = ("model", "recipe", "stored", "KL as it is", "KL rotated", "difference", "seeds",
               "helps", "date")  # fmt: skip
    return (
        "\n### Rotation\n\nThe residual stream and the values turned by random orthogonal "
        "matrices, folded into the layers (`benchmarks/rotation.py`); held-out text, the same "
        "stored bits.\n\n" + markdown(columns, lines)
    )
