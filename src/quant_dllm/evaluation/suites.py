"""Named sets of lm-eval tasks, with the settings that scores are published under."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from quant_dllm.errors import UnknownNameError


@dataclass(frozen=True)
class Task:
    """A task of lm-eval.

    Attributes:
        name: lm-eval's name of a task, a group or a tag.
        shots: Examples in the prompt; the task's own number if not given.
        length: Tokens to write, where it is a generation task; the task's own if not given.
    """

    name: str
    shots: int | None = None
    length: int | None = None


SUITES: dict[str, tuple[Task, ...]] = {
    "quant-dllm": (
        Task("mmlu", 5),
        Task("winogrande", 5),
        Task("piqa", 0),
        Task("arc_challenge", 0),
        Task("arc_easy", 0),
        Task("hellaswag", 0),
        Task("bbh", 3, 256),
    ),
    "math-code": (
        Task("gsm8k", 4, 256),
        Task("minerva_math", 0, 256),
        Task("humaneval", 0, 512),
        Task("mbpp", 3, 512),
    ),
}
"""The paper's seven tasks; mathematics and code, which are written and not chosen."""

ONE_TOKEN = ("mmlu", "cmmlu", "ceval")  # answers of one token: a single draw is exact


def chosen(tasks: Sequence[str], suite: str | None, shots: int | None) -> list[Task]:
    """List the tasks that were asked for, those of a suite first.

    Raises:
        UnknownNameError: There is no such suite.
    """
    if suite is not None and suite not in SUITES:
        raise UnknownNameError("suite", suite, SUITES)
    found = [*(SUITES[suite] if suite else ()), *map(Task, tasks)]
    return [task if shots is None else replace(task, shots=shots) for task in found]
