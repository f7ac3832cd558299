"""Measure every method and ablation on the two small models, and write ``docs/results.md``.

    python benchmarks/results.py run tiny
    python benchmarks/results.py run second --second FOLDER     (see second_model.py)
    python benchmarks/results.py write

Records are JSON lines in ``benchmarks/results``; runs that are there are not made again, so it can
be stopped at any time; ``--missing`` keeps those of earlier code as well. ``write`` makes the page
and its pictures of the records alone.
"""

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

import beyond
from quant_dllm.evaluation.compare import Comparison, append_record, read_records
from quant_dllm.record import BASE, ComparisonRecord
from quant_dllm.report.pareto import draw
from quant_dllm.report.table import COLUMNS, RATIOS, Row, Spread, markdown, rows
from quant_dllm.track import silent

ROOT = Path(__file__).resolve().parents[1]
RECORDS, PAGE = ROOT / "benchmarks" / "results", ROOT / "docs" / "results.md"
WINDOWS, DRAWS = 32, 4  # held-out windows, masks of each: on which all recipes are compared
RELEASE = "quant-dllm-2bit-release"
OURS = ("quant-dllm-2bit", "quant-dllm-2bit-paper", RELEASE)
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
    "quant-dllm-2bit-untuned", "quant-dllm-2bit",
)  # fmt: skip
SECTIONS = (
    Section(
        "The ladder",
        "From the published code's form to the default recipe, one lever added at each step: signs "
        "chosen in the sweep with second-order steps after it; scales of six bits; embedding and "
        "head of eight; one budget over all matrices, spent by sensitivity; all scales tuned end "
        "to end.",
        ("gptq-2bit", *LADDER),
    ),
    Section(
        "Two bits",
        "Every method at its paper's defaults, blocks of 128 channels, the same calibration text.",
        (*OURS, *(f"{name}-2bit" for name in UNIFORM), "billm", "arb-llm"),
    ),
    Section(
        "One to four bits",
        "The default recipe and the published code's form at other budgets.",
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


@dataclass(frozen=True)
class Question:
    """Two recipes that differ in one choice, measured at the same seeds."""

    text: str
    yes: str
    no: str


QUESTIONS = (
    Question("Is rounding to second order worth anything?", "ladder-1-rounding", RELEASE),
    Question("Do scales of six bits cost anything?", "ladder-2-scales", "ladder-1-rounding"),
    Question("Do embedding and head of eight bits cost anything?",
             "ladder-3-outside", "ladder-2-scales"),
    Question("Is a budget over all matrices worth anything?",
             "quant-dllm-2bit-untuned", "ladder-3-outside"),
    Question("Is tuning the scales worth anything?",
             "quant-dllm-2bit", "quant-dllm-2bit-untuned"),
    Question("Does ours beat GPTQ?", "quant-dllm-2bit", "gptq-2bit"),
    Question("Does the published code's form beat GPTQ?", RELEASE, "gptq-2bit"),
    Question("Does the paper's form beat its code's?", "quant-dllm-2bit-paper", RELEASE),
    Question("Does GPTAQ's asymmetry help GPTQ?", "gptaq-2bit", "gptq-2bit"),
    Question("Do SliM-LLM's bits and grid help GPTQ?", "slim-llm-2bit", "gptq-2bit"),
    Question("Is masked text (MCS) better than clean text?", RELEASE, "ablation-clean-text"),
    Question("Are the model's own trajectories better than random masks?",
             "ablation-trajectory", RELEASE),
    Question("Four masks a window in place of one?", "ablation-mcs-4-copies", RELEASE),
    Question("The same at the same cost, a quarter of the windows?",
             "ablation-mcs-4-copies-same-cost", RELEASE),
    Question("Binary planes in place of a uniform grid?", RELEASE, "ablation-uniform-grid"),
    Question("Is Λ worth anything, errors fed back past a block only?",
             RELEASE, "ablation-no-lambda"),
    Question("Is Λ worth anything, errors fed back inside a block?",
             "ablation-in-sweep", "ablation-in-sweep-no-lambda"),
    Question("Planes fitted jointly in place of one after another?", RELEASE, "ablation-greedy"),
    Question("Errors fed back at all?", RELEASE, "ablation-no-feedback"),
    Question("The exact solve of a block in place of the diagonal?",
             "ablation-exact-feedback", RELEASE),
    Question("Signs chosen inside the sweep?", "ablation-in-sweep", RELEASE),
    Question("ABMP at 5 % in place of none, blocks of 16?", "ablation-abmp-5", "ablation-abmp-0"),
    Question("ABMP at 10 % in place of none?", "ablation-abmp-10", "ablation-abmp-0"),
    Question("ABMP at 15 % in place of none?", "ablation-abmp-15", "ablation-abmp-0"),
    Question("3σ in place of 2σ?", "ablation-3-sigma", RELEASE),
    Question("λ of 1.5 in place of 3?", "ablation-lambda-1.5", "ablation-lambda-3"),
    Question("Blocks of 64 in place of 128?", "ablation-block-64", RELEASE),
    Question("Blocks of 256 in place of 128?", "ablation-block-256", RELEASE),
    Question("Packed windows in place of long documents?", "ablation-packed-windows", RELEASE),
    Question("Twice the calibration text?", "ablation-256-sequences", RELEASE),
    Question("A quarter of the calibration text?", "ablation-32-sequences", RELEASE),
)  # fmt: skip
AT_RATIOS = tuple(f"at {float(ratio):.0%}" for ratio in RATIOS)
CERTAIN = 4.30  # Student's t of 95 % at three seeds
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
            seeds=[seed], sequences=WINDOWS, length=args.length, draws=DRAWS, track=silent, **texts,
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


def part(name: str, found: list[ComparisonRecord]) -> str:
    """Write the tables of one model, and draw its picture."""
    table = {row.name: row for row in rows(found)}
    seeds = max(len(row.runs) for row in table.values())
    base = found[0].evaluation
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
        "### Questions\n",
        "Differences of KL, nats, negative where the answer is yes, mean ± deviation over the "
        "seeds and mean at each mask ratio. Both recipes saw the same calibration windows and are "
        "measured on the same masks. Unclear: zero is within the 95 % interval of three seeds.\n",
        answers(table),
    ]
    return "\n".join(text)


def answers(table: dict[str, Row]) -> str:
    """Answer the questions by differences of KL, seed by seed; masks and text are shared."""
    lines = []
    for question in QUESTIONS:
        if question.yes in table and question.no in table:
            lines.append((question.text, *answer(table[question.yes], table[question.no])))
    columns = ("question", "KL with", "without", "difference", *AT_RATIOS, "answer")
    return markdown(columns, lines)


def answer(yes: Row, no: Row) -> tuple[str, ...]:
    """Compare two recipes at the seeds that both have."""
    without = {run.seed: run.evaluation for run in no.runs}
    pairs = [(r.evaluation, without[r.seed]) for r in yes.runs if r.seed in without]
    change = Spread.of([a["kl"] - b["kl"] for a, b in pairs])
    by_ratio = [
        Spread.of([a["kl_by_mask_ratio"][r] - b["kl_by_mask_ratio"][r] for a, b in pairs]).mean
        for r in RATIOS
    ]
    error = CERTAIN * change.deviation / math.sqrt(len(pairs))
    verdict = "yes" if change.mean < 0 else "no: worse"
    if abs(change.mean) < error:
        verdict = "unclear"
    if len(pairs) < 3:
        verdict = f"{len(pairs)} of 3 seeds"
    return (
        f"{yes.kl.mean:.4f}", f"{no.kl.mean:.4f}", change.text(4),
        *(f"{value:+.3f}" for value in by_ratio), verdict,
    )  # fmt: skip


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
    for name in MODELS:
        path = RECORDS / f"compare-{name}.jsonl"
        if path.exists():
            text += part(name, latest(path)) + "\n"
    text += beyond.text()
    PAGE.write_text(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("verb", choices=("run", "write"))
    parser.add_argument("model", choices=tuple(MODELS), nargs="?", default="tiny")
    parser.add_argument("--second", type=Path, help="folder made by second_model.py")
    parser.add_argument("--recipe", action="append", help="only these recipes")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--missing", action="store_true", help="only what has no record at all")
    parser.add_argument("--length", type=int, default=256, help="tokens of a window")
    args = parser.parse_args()
    if args.verb == "run":
        run(args.model, args)
    else:
        write()


if __name__ == "__main__":
    main()
