"""What holds over both models and what does not, and why GPTQ beats the release's form."""

from statistics import fmean

from quant_dllm.report.table import RATIOS, Row, Spread, markdown
from questions import AT_RATIOS, QUESTIONS, RELEASE, Answer, Question, Table, certain

KINDS = {"q, k": ("q", "k"), "v": ("v",), "out": ("out",), "gate, up": ("gate", "up"),
         "down": ("down",)}  # fmt: skip
GRID, EXACT, SWEEP = "ablation-uniform-grid", "ablation-exact-feedback", "ablation-in-sweep"
SLIM = "slim-llm-2bit"
DUELS = (
    ("GPTQ over the release's planes", GRID, RELEASE),
    ("GPTQ over planes, a block's error solved exactly", GRID, EXACT),
    ("GPTQ over planes, signs in the sweep", GRID, SWEEP),
    ("SliM-LLM, GPTQ on searched grids, over the release's planes", SLIM, RELEASE),
)
GROUPS = {
    "Does not hold on either model": lambda said: set(said) == {"no: worse"},
    "Holds on one model, and the reverse on the other":
        lambda said: {"yes", "no: worse"} <= set(said),
    "Is not shown: unclear, or worse, on a model that has the seeds":
        lambda said: bool({"unclear", "no: worse"} & set(said)),
    "Holds where there are seeds enough; another model has one": lambda said: "one seed" in said,
    "Holds on both models": lambda said: set(said) == {"yes"},
}  # fmt: skip


def holds(tables: dict[str, Table]) -> str:
    """Sort every question by what the models say of it together."""
    groups: dict[str, list[tuple[str, ...]]] = {title: [] for title in GROUPS}
    claimed: dict[str, int] = {}
    for question in QUESTIONS:
        found = [Answer.of(question, table) for table in tables.values()]
        said = [answer.verdict() if answer else "one seed" for answer in found]
        title = next(title for title, fits in GROUPS.items() if fits(said))
        groups[title].append((question.text, question.claimed or "–", *map(cell, found)))
        if question.claimed == "paper":
            claimed[title] = claimed.get(title, 0) + 1
    count = sum(claimed.values())
    told = "; ".join(f"{title.lower()}: {n}" for title, n in claimed.items())
    text = [
        "## What holds, and what does not\n",
        "Each question compares two recipes that differ in one choice; a cell is the difference of "
        "KL, nats, ± its deviation over the seeds, and is negative where the answer is yes. Zero "
        "is outside the 95 % interval wherever a cell says yes or no. The tables by model, below, "
        "have the mask ratios.\n",
        f"Of {count} claims and choices of the paper or its code: {told}.\n",
    ]
    for title, lines in groups.items():
        if lines:
            text += [f"**{title}**\n", markdown(("question", "claimed by", *tables), lines)]
    return "\n".join(text)


def cell(answer: Answer | None) -> str:
    """Format one model's answer."""
    return "–" if answer is None else f"{Spread.of(answer.change()).text(3)}: {answer.verdict()}"


def duel(tables: dict[str, Table]) -> str:
    """Say where GPTQ beats the release's form, by mask ratio, and what makes the difference."""
    question = Question("", RELEASE, "gptq-2bit")
    found = {name: Answer.of(question, table) for name, table in tables.items()}
    where = [
        (name, *(f"{mark(a.change(ratio))}" for ratio in (None, *RATIOS)))
        for name, a in found.items() if a
    ]  # fmt: skip
    lines = [line for name, table in tables.items() for line in duels(name, table)]
    text = [
        "## Where GPTQ beats the release's form, and why\n",
        "KL of the release's form less that of `gptq-2bit`: positive where GPTQ is better; * zero "
        "is outside the 95 % interval.\n",
        markdown(("model", "all", *AT_RATIOS), where),
        "The two differ twice. GPTQ lets the columns of a block make up for each other's errors; "
        "the release's form rounds a block as a whole and feeds its error to later blocks alone, "
        "by the diagonal. And GPTQ's levels are evenly spaced from a row's minimum to its maximum, "
        "where planes have scales of their own by row and by column. The table has one over the "
        "other, layer error by kind of layer and KL, the same calibration but for SliM-LLM: below "
        "1 where GPTQ is better. Its second and third rows give planes the feedback that GPTQ has; "
        "the last gives GPTQ better grids.\n",
        markdown(("model", "", *KINDS, "KL"), lines),
        *(sentence(name, table) for name, table in tables.items()),
    ]
    return "\n".join(text)


def mark(change: list[float]) -> str:
    return f"{Spread.of(change).mean:+.3f}{'*' if certain(change) else ''}"


def duels(name: str, table: Table) -> list[tuple[str, ...]]:
    """Divide layer errors and KL of one recipe by those of another."""
    return [
        (name, text, *(f"{ratio:.2f}" for ratio in ratios(table[a], table[b]).values()))
        for text, a, b in DUELS if a in table and b in table
    ]  # fmt: skip


def ratios(a: Row, b: Row) -> dict[str, float]:
    """Divide means over the seeds that both have."""
    seeds = {run.seed for run in a.runs} & {run.seed for run in b.runs}
    over = {
        kind: fmean(of_kind(a, names, seeds)) / fmean(of_kind(b, names, seeds))
        for kind, names in KINDS.items()
    }
    kl = [fmean(r.evaluation["kl"] for r in row.runs if r.seed in seeds) for row in (a, b)]
    return over | {"KL": kl[0] / kl[1]}


def of_kind(row: Row, names: tuple[str, ...], seeds: set[int] | None = None) -> list[float]:
    """Return the mean error of some layers over the blocks, seed by seed."""
    return [
        fmean(e for layer, e in run.layer_errors.items() if layer.rpartition(".")[2] in names)
        for run in row.runs if seeds is None or run.seed in seeds
    ]  # fmt: skip


def sentence(name: str, table: Table) -> str:
    """Say of one model which of the two differences decides."""
    if not {GRID, RELEASE, EXACT} <= table.keys():
        return ""
    plain, fed = ratios(table[GRID], table[RELEASE]), ratios(table[GRID], table[EXACT])
    better = [f"{kind} ({plain[kind]:.2f})" for kind in KINDS if plain[kind] < 1]
    worse = [f"{kind} ({plain[kind]:.2f})" for kind in KINDS if plain[kind] >= 1]
    won = [kind for kind in KINDS if fed[kind] >= 1]
    return (
        f"On `{name}` GPTQ has less layer error than the release's form in "
        f"{', '.join(better) or 'no kind of layer'}, no less in {', '.join(worse) or 'none'}, and "
        f"{plain['KL']:.2f} × its KL. Once a block's error is solved exactly, planes are at least "
        f"as good in {len(won)} of {len(KINDS)} kinds{': ' if won else ''}{'; '.join(won)}, and "
        f"GPTQ has {fed['KL']:.2f} × their KL.\n"
    )


def by_kind(table: Table) -> str:
    """Tabulate the layer errors of rounding methods, rungs and ablations by kind of layer."""
    lines = []
    for name, row in table.items():
        if not all(run.layer_errors for run in row.runs) or "3bit" in name or "4bit" in name:
            continue
        cells = (Spread.of(of_kind(row, names)).text(4) for names in KINDS.values())
        lines.append((name, *cells, f"{row.kl.mean:.4f}"))
    return (
        "### Layer error by kind of layer\n\nThe share of output energy that is wrong on held-out "
        "masked inputs, mean over the blocks ± deviation over the seeds. The release's form is "
        "what each ablation changes one part of, and the ladder adds parts to.\n\n"
        + markdown(("recipe", *KINDS, "KL"), lines)
    )
