"""Measure every method and ablation on the two small models, and write ``docs/results.md``.

    python benchmarks/results.py run tiny
    python benchmarks/results.py run second --second FOLDER     (see second_model.py)
    python benchmarks/results.py write

Records are JSON lines in ``benchmarks/results``; runs that are there are not made again, so it can
be stopped at any time; ``--missing`` keeps those of earlier code as well. ``write`` makes the page
and its pictures of the records alone.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import beyond
from claims import by_kind, duel, holds
from quant_dllm.evaluation.compare import Comparison, append_record, read_records
from quant_dllm.record import BASE, ComparisonRecord
from quant_dllm.report.pareto import draw
from quant_dllm.report.table import COLUMNS, Row, markdown, rows
from quant_dllm.track import silent
from questions import PAPER, RELEASE, Table, answers

ROOT = Path(__file__).resolve().parents[1]
RECORDS, PAGE = ROOT / "benchmarks" / "results", ROOT / "docs" / "results.md"
WINDOWS, DRAWS = 32, 4  # held-out windows, masks of each: on which all recipes are compared
OURS = ("quant-dllm-2bit", PAPER, RELEASE)
UNIFORM = ("rtn", "hqq", "awq", "gptq", "gptaq", "slim-llm")


@dataclass(frozen=True)
class Section:
    """A table of the page: recipes, each beside the ``RELEASE``."""

    title: str
    about: str
    recipes: tuple[str, ...]


def ablations(*names: str) -> tuple[str, ...]:
    return (RELEASE, *(f"ablation-{name}" for name in names))


LADDER = (
    RELEASE, "ladder-1-rounding", "ladder-2-scales", "ladder-3-outside",
    "ladder-4-budget", "ladder-5-drift", "quant-dllm-2bit-untuned", "quant-dllm-2bit-blocks",
    "quant-dllm-2bit",
)  # fmt: skip
SECTIONS = (
    Section(
        "The ladder",
        "From the published code's form to the default recipe, one lever added at each step: signs "
        "chosen in the sweep with second-order steps after it; scales of six bits; embedding and "
        "head of eight; one budget over all matrices, spent by sensitivity; rounding towards the "
        "full-precision model's output; embedding and head of four bits, of eight for common "
        "tokens, and the head rounded behind the blocks (untuned); the scales of each block tuned "
        "by themselves; all scales tuned end to end. Below, two thirds of the updates; those "
        "without tuning blocks before; that at nearly three times the rate; then without the sixth "
        "step; and without the fifth and the sixth.",
        ("gptq-2bit", *LADDER, "ablation-tuned-320-steps", "ablation-tuned-without-blocks",
         "ablation-tuned-rate-0.007", "ablation-tuned-outside-8", "ablation-tuned-without-drift"),
    ),
    Section(
        "Two bits",
        "Every method at its paper's defaults, blocks of 128 channels, the same calibration text.",
        (*OURS, *(f"{name}-2bit" for name in UNIFORM), "billm", "arb-llm"),
    ),
    Section(
        "One to four bits",
        "The default recipe and the published code's form at other budgets; at three "
        "and four bits the default leaves embedding and head at eight, rounded to nearest.",
        tuple(f"quant-dllm-{bits}bit{form}" for form in ("", "-release")
              for bits in ("1", "1.5", "2", "3", "4") if (bits, form) != ("1.5", "-release")),
    ),
    Section(
        "Three and four bits",
        "The uniform methods with more bits: how far two bits are from where it stops to matter.",
        tuple(f"{name}-{bits}bit" for bits in (3, 4) for name in UNIFORM),
    ),
    Section(
        "What the layer sees",
        "Calibration: clean text, random masks, the model's own trajectories; one t a window or "
        "four copies; more and less text; the order of layers.",
        ablations("clean-text", "trajectory", "mcs-4-copies", "mcs-4-copies-same-cost",
                  "packed-windows", "standard-order", "32-sequences", "64-sequences",
                  "256-sequences", "512-sequences"),
    ),
    Section(
        "How many bits",
        "ABMP's ratio at blocks of 16 channels (at 128 these layers have too few blocks for any "
        "bit to move), and the size of blocks.",
        ablations("abmp-0", "abmp-5", "abmp-10", "abmp-15", "block-64", "block-256"),
    ),
    Section(
        "How it is rounded",
        "DAQ: its mask Λ, greedy or joint planes, how a block's error is fed on.",
        ablations("uniform-grid", "no-lambda", "lambda-1.5", "lambda-2", "lambda-3", "3-sigma",
                  "greedy", "no-feedback", "exact-feedback", "in-sweep", "in-sweep-no-lambda"),
    ),
)  # fmt: skip


MODELS = {
    "tiny": "`tiny`, the bundled model",
    "second": "`stories15M_mdlm`, a shifted Llama denoiser of 15 M parameters",
}


def run(name: str, args: argparse.Namespace) -> None:
    """Make what is missing, one seed of every recipe before the next seed."""
    path = RECORDS / f"compare-{name}.jsonl"
    known = read_records(path)
    texts: dict[str, Path] = {}
    if name == "second":
        texts = {
            "calibration": args.second / "calibration.txt",
            "text": args.second / "heldout.txt",
        }
    recipes = dict.fromkeys(r for section in SECTIONS for r in section.recipes)
    if args.recipe:
        recipes = dict.fromkeys(args.recipe)
    there = {(r.name, r.seed) for r in known.values()} if args.missing else set()
    for seed in range(args.seeds):
        wanted = [recipe for recipe in recipes if (recipe, seed) not in there]
        comparison = Comparison(
            model=str(args.second) if name == "second" else name, recipes=wanted,
            seeds=[seed], sequences=WINDOWS, length=args.length, draws=DRAWS, track=silent,
            keep=args.keep, **texts,
        )  # fmt: skip
        for record in comparison.run(known):
            if record.identity not in known:
                known[record.identity] = record
                append_record(path, record)
                kl = record.evaluation["kl"]
                print(f"{name} seed {seed} {record.name}: KL {kl}", flush=True)


def latest(path: Path) -> list[ComparisonRecord]:
    """Keep the newest record of each recipe and seed."""
    newest = {(record.name, record.seed): record for record in read_records(path).values()}
    return list(newest.values())


def part(name: str, table: Table) -> str:
    """Write the tables of one model, and draw its picture."""
    seeds = max(len(row.runs) for row in table.values())
    base = next(iter(table.values())).runs[0].evaluation
    text = [
        f"## {MODELS[name]}\n",
        f"{base['sequences']} held-out windows of {base['length']} tokens, {base['draws']} masks a "
        f"window, shared by all; ± is the deviation over {seeds} calibrations.\n",
        f"![Stored bits against KL](results-{name}.png)\n",
    ]
    packed = [row for row in table.values() if not row.name.startswith(("ablation", "ladder"))]
    draw(packed, ROOT / "docs" / f"results-{name}.png", f"{name}: every method")
    for section in SECTIONS:
        chosen = [table[r] for r in (BASE, *section.recipes) if r in table]
        if len(chosen) < 2:
            continue
        columns = (*COLUMNS[:6], "× release", *COLUMNS[6:])
        lines = [with_ratio(row, table.get(RELEASE)) for row in chosen]
        text += [f"### {section.title}\n", section.about + "\n", markdown(columns, lines)]
    text += [
        by_kind(table),
        "### Questions\n",
        "Differences of KL, nats, negative where the answer is yes, mean ± deviation over the "
        "seeds and mean at each mask ratio, measured on the same masks. Unclear: zero is within "
        "the 95 % interval of the seeds; * at a mask ratio: it is not.\n",
        answers(table),
    ]
    return "\n".join(text)


def with_ratio(row: Row, release: Row | None) -> tuple[str, ...]:
    """Put the ratio of the excess bound to the release's behind it."""
    cells = row.cells()
    if row.name == BASE or release is None:
        return (*cells[:6], "–", *cells[6:])
    return (*cells[:6], f"{row.excess.mean / release.excess.mean:.2f}", *cells[6:])


def write() -> None:
    """Write the page of what is recorded."""
    text = (
        "# Results\n\n"
        "Made by `python benchmarks/results.py write` from the records in `benchmarks/results/`.\n"
        "NELBO is the bound on the negative log-likelihood in nats a token, excess what "
        "quantization adds to it under the same masks; KL is to the 16-bit model at hidden "
        "positions, in nats, mean over the mask ratios and at each of them; layer error is the "
        "share of a layer's output energy that is wrong on held-out masked inputs.\n\n"
    )
    tables: dict[str, Table] = {}
    for name in MODELS:
        path = RECORDS / f"compare-{name}.jsonl"
        if path.exists():
            tables[name] = {row.name: row for row in rows(latest(path))}
    parts = [holds(tables), duel(tables), *(part(name, table) for name, table in tables.items())]
    parts.append(beyond.text())
    PAGE.write_text(text + "\n".join(parts) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("verb", choices=("run", "write"))
    parser.add_argument("model", choices=tuple(MODELS), nargs="?", default="tiny")
    parser.add_argument("--second", type=Path, help="folder made by second_model.py")
    parser.add_argument("--recipe", action="append", help="only these recipes")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--missing", action="store_true", help="only what has no record at all")
    parser.add_argument("--keep", type=Path, help="folder that keeps what is quantized")
    parser.add_argument("--length", type=int, default=256, help="tokens of a window")
    args = parser.parse_args()
    if args.verb == "run":
        run(args.model, args)
    else:
        write()


if __name__ == "__main__":
    main()
