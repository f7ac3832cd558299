"""Questions of one choice each: two recipes that differ in it, measured at the same seeds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from quant_dllm.report.table import RATIOS, Row, Spread, markdown

RELEASE, PAPER = "quant-dllm-2bit-release", "quant-dllm-2bit-paper"
STUDENT = {2: 12.71, 3: 4.30}  # Student's t of 95 %, by the number of seeds
AT_RATIOS = tuple(f"at {float(ratio):.0%}" for ratio in RATIOS)
Table = dict[str, Row]


@dataclass(frozen=True)
class Question:
    """Is ``yes`` better than ``no``?

    Attributes:
        claimed: Who says that it is; empty where nobody does.
    """

    text: str
    yes: str
    no: str
    claimed: str = ""


QUESTIONS = (
    Question("Is rounding to second order worth anything?", "ladder-1-rounding", RELEASE),
    Question("Scales of six bits in place of sixteen?", "ladder-2-scales", "ladder-1-rounding"),
    Question("Embedding and head of eight bits in place of sixteen?",
             "ladder-3-outside", "ladder-2-scales"),
    Question("Is a budget over all matrices worth anything?",
             "ladder-4-budget", "ladder-3-outside"),
    Question("Is rounding towards the full-precision model's output worth anything?",
             "ladder-5-drift", "ladder-4-budget"),
    Question("And once all scales are tuned?",
             "ablation-tuned-outside-8", "ablation-tuned-without-drift"),
    Question("Embedding and head of four bits, common tokens of eight, the head rounded behind the "
             "blocks, in place of eight bits to nearest?",
             "quant-dllm-2bit-untuned", "ladder-5-drift"),
    Question("And once all scales are tuned, four bits in place of eight?",
             "ablation-tuned-rate-0.007", "ablation-tuned-outside-8"),
    Question("Scales tuned at a third of that rate?",
             "ablation-tuned-without-blocks", "ablation-tuned-rate-0.007"),
    Question("Is tuning the scales of each block by themselves worth anything?",
             "quant-dllm-2bit-blocks", "quant-dllm-2bit-untuned"),
    Question("And before all are tuned end to end?",
             "ablation-tuned-320-steps", "ablation-tuned-without-blocks"),
    Question("Half as many updates more?", "quant-dllm-2bit", "ablation-tuned-320-steps"),
    Question("Is tuning the scales worth anything?",
             "quant-dllm-2bit", "quant-dllm-2bit-untuned"),
    Question("Does ours beat GPTQ?", "quant-dllm-2bit", "gptq-2bit"),
    Question("Does the published code's form beat GPTQ?", RELEASE, "gptq-2bit", "paper"),
    Question("Does the paper's form beat GPTQ?", PAPER, "gptq-2bit", "paper"),
    Question("Does the paper's form beat its code's?", PAPER, RELEASE),
    Question("Does the published code's form beat SliM-LLM?", RELEASE, "slim-llm-2bit", "paper"),
    Question("Does GPTAQ's asymmetry help GPTQ?", "gptaq-2bit", "gptq-2bit", "GPTAQ"),
    Question("Do SliM-LLM's bits and grid help GPTQ?", "slim-llm-2bit", "gptq-2bit", "SliM-LLM"),
    Question("Is masked text (MCS) better than clean text?",
             RELEASE, "ablation-clean-text", "paper"),
    Question("Are the model's own trajectories better than random masks?",
             "ablation-trajectory", RELEASE),
    Question("Four masks a window in place of one?", "ablation-mcs-4-copies", RELEASE, "paper"),
    Question("The same at the same cost, a quarter of the windows?",
             "ablation-mcs-4-copies-same-cost", RELEASE),
    Question("Binary planes in place of a uniform grid?",
             RELEASE, "ablation-uniform-grid", "paper"),
    Question("Is Λ worth anything, errors fed back past a block only?",
             RELEASE, "ablation-no-lambda", "paper"),
    Question("Is Λ worth anything, errors fed back inside a block?",
             "ablation-in-sweep", "ablation-in-sweep-no-lambda", "paper"),
    Question("Planes fitted one after another in place of jointly?",
             "ablation-greedy", RELEASE, "paper"),
    Question("Errors fed back at all?", RELEASE, "ablation-no-feedback"),
    Question("The exact solve of a block in place of the diagonal?",
             "ablation-exact-feedback", RELEASE),
    Question("Signs chosen inside the sweep?", "ablation-in-sweep", RELEASE),
    Question("ABMP at 5 % in place of none, blocks of 16?",
             "ablation-abmp-5", "ablation-abmp-0", "paper"),
    Question("ABMP at 10 % in place of none?", "ablation-abmp-10", "ablation-abmp-0", "paper"),
    Question("ABMP at 15 % in place of none?", "ablation-abmp-15", "ablation-abmp-0"),
    Question("3σ in place of 2σ?", "ablation-3-sigma", RELEASE, "paper"),
    Question("λ of 1.5 in place of 3?", "ablation-lambda-1.5", "ablation-lambda-3"),
    Question("λ of 2 in place of 1.5?", "ablation-lambda-2", "ablation-lambda-1.5"),
    Question("Blocks of 64 in place of 128?", "ablation-block-64", RELEASE),
    Question("Blocks of 256 in place of 128?", "ablation-block-256", RELEASE),
    Question("Packed windows in place of long documents?", "ablation-packed-windows", RELEASE),
    Question("Each block in the order of its layers?", "ablation-standard-order", RELEASE),
    Question("Twice the calibration text?", "ablation-256-sequences", RELEASE),
    Question("A quarter of the calibration text?", "ablation-32-sequences", RELEASE),
)  # fmt: skip


@dataclass(frozen=True)
class Answer:
    """What one model says: differences of KL, seed by seed; masks and text are shared."""

    pairs: tuple[tuple[dict, dict], ...]  # evaluations with and without

    @classmethod
    def of(cls, question: Question, table: Table) -> "Answer | None":
        """Pair the seeds that both recipes have."""
        if question.yes not in table or question.no not in table:
            return None
        without = {run.seed: run.evaluation for run in table[question.no].runs}
        runs = [run for run in table[question.yes].runs if run.seed in without]
        pairs = tuple((run.evaluation, without[run.seed]) for run in runs)
        return cls(pairs) if pairs else None

    def sides(self) -> tuple[float, float]:
        """Return the mean KL with and without."""
        return tuple(Spread.of([pair[side]["kl"] for pair in self.pairs]).mean for side in (0, 1))

    def change(self, ratio: str | None = None) -> list[float]:
        """Return the difference of each seed, over all mask ratios or at one."""
        if ratio is None:
            return [a["kl"] - b["kl"] for a, b in self.pairs]
        key = "kl_by_mask_ratio"
        return [a[key][ratio] - b[key][ratio] for a, b in self.pairs]

    def verdict(self) -> str:
        """Say what is certain."""
        change = self.change()
        if len(change) < 2:
            return "one seed"
        if not certain(change):
            return "unclear"
        return "yes" if sum(change) < 0 else "no: worse"

    def cells(self) -> tuple[str, ...]:
        """Format the row of one model's own table."""
        by_ratio = (self.change(ratio) for ratio in RATIOS)
        return (
            *(f"{kl:.4f}" for kl in self.sides()), Spread.of(self.change()).text(4),
            *(f"{Spread.of(c).mean:+.3f}{'*' if certain(c) else ''}" for c in by_ratio),
            self.verdict(),
        )  # fmt: skip


def certain(change: Sequence[float]) -> bool:
    """Tell whether zero is outside the 95 % interval of the mean."""
    if len(change) not in STUDENT:
        return False
    spread = Spread.of(change)
    return abs(spread.mean) > STUDENT[len(change)] * spread.deviation / math.sqrt(len(change))


def answers(table: Table) -> str:
    """Answer all questions by one model's records."""
    lines = []
    for question in QUESTIONS:
        if found := Answer.of(question, table):
            bits = f"{table[question.yes].stored_bits:.2f}, {table[question.no].stored_bits:.2f}"
            lines.append((question.text, bits, *found.cells()))
    columns = ("question", "bits with, without", "KL with", "without", "difference", *AT_RATIOS)
    return markdown((*columns, "answer"), lines)
