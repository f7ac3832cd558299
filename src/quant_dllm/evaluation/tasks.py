"""Score a model on lm-eval's tasks, beside the 16-bit model that it was made of."""

import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from quant_dllm.distributed import broadcast_facts
from quant_dllm.errors import ModelError, RequestError
from quant_dllm.evaluation.identity import hash_code, hash_file, identify
from quant_dllm.evaluation.suites import Task
from quant_dllm.models.source import Source, open_model
from quant_dllm.track import Track, silent

CACHE = "QUANT_DLLM_CACHE"  # folder for scores of 16-bit models; ~/.cache/quant-dllm if not set


@dataclass(frozen=True)
class Run:
    """What one model got in one task.

    Attributes:
        metrics: Value and standard error of each metric of lm-eval.
        calls: Canvases that went through the model.
        seconds: Time that it took.
        weights: Fingerprint of the weights that were scored.
        cached: Whether it was measured in an earlier run of the same code on the same weights.
    """

    metrics: dict[str, tuple[float, float | None]]
    calls: int
    seconds: float
    weights: str
    cached: bool = False

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> "Run":
        """Read what was kept of an earlier run."""
        metrics = {name: (value, error) for name, (value, error) in raw["metrics"].items()}
        return cls(**raw | {"metrics": metrics, "cached": True})


@dataclass(frozen=True)
class TaskScore:
    """A task, what the model got, and what the 16-bit model got.

    Attributes:
        base: ``None`` where the model is the 16-bit one.
    """

    task: Task
    run: Run
    base: Run | None

    def recovery(self, metric: str) -> tuple[float, float] | None:
        """Return the share of the 16-bit model's score that is left, percent, and its error.

        The errors of both scores are taken as independent. Both models see the same questions, so
        that the true error is smaller.
        """
        if self.base is None or not self.base.metrics.get(metric, (0.0, None))[0]:
            return None
        (ours, e), (theirs, f) = self.run.metrics[metric], self.base.metrics[metric]
        share = ours / theirs
        error = math.hypot(e or 0.0, share * (f or 0.0)) / abs(theirs)
        return 100 * share, 100 * error

    def to_dict(self) -> dict[str, Any]:
        """Return JSON's types."""
        recovery = {metric: self.recovery(metric) for metric in self.run.metrics}
        return asdict(self) | {"recovery_percent": recovery}


@dataclass(frozen=True, kw_only=True)
class TaskEvaluation:
    """What is asked of lm-eval.

    Attributes:
        model: What is scored, see `load`.
        tasks: On what.
        against: The 16-bit model; what the packed folder names if not given.
        limit: Questions a task; all if not given.
        folder: Folder of further task definitions.
        settings: Arguments of `harness.QuantDLLM`, in JSON's types.
        bootstrap: Resamples for the errors of metrics that have no formula.
    """

    model: str
    tasks: Sequence[Task]
    against: str | None = None
    limit: int | None = None
    folder: Path | None = None
    settings: dict[str, Any]
    bootstrap: int = 1000
    track: Track = silent

    def run(self) -> Iterator[TaskScore]:
        """Yield the score of each task.

        Raises:
            RequestError: lm-eval is not installed, it does not know a task, or the 16-bit model
                cannot be found.
            QuantDLLMError: What `load` raises.
        """
        _require_lm_eval()
        base = self._base
        for task in self.tasks:
            theirs = self._of_base(base, task) if base else None
            yield TaskScore(task, self._score(self._loaded, task, self._weights), theirs)

    @cached_property
    def _source(self) -> Source:
        return open_model(self.model, self.settings.get("attention_block"))

    @cached_property
    def _weights(self) -> str:
        return fingerprint(self._source)

    @cached_property
    def _base(self) -> Source | None:
        """Find the 16-bit model, where the model is not that itself."""
        quantized = bool(self._source.folder.quantization)
        name = self.against
        if name is None and quantized:
            name = self._source.folder.manifest.get("base_model")
        if name is None:
            return None
        try:
            return open_model(name, self.settings.get("attention_block"))
        except ModelError as error:
            raise RequestError(
                f"{self.model} was made from {name}, which cannot be opened ({error}) Scores are "
                "shown beside the 16-bit model's: name it with --against."
            ) from None

    @cached_property
    def _loaded(self) -> Any:
        from quant_dllm.evaluation.harness import QuantDLLM

        return QuantDLLM(self.model, track=self.track, **self.settings)

    @cached_property
    def _loaded_base(self) -> Any:
        from quant_dllm.evaluation.harness import QuantDLLM

        assert self._base is not None
        return QuantDLLM(self._base.folder.path, track=self.track, **self.settings)

    @cached_property
    def _definitions(self) -> Any:
        """List the tasks that there are: thousands of files, read once."""
        from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

        return TaskManager(include_path=self.folder and str(self.folder))

    def _of_base(self, base: Source, task: Task) -> Run:
        """Score the 16-bit model, or look it up."""
        weights = fingerprint(base)
        path = cache() / f"{self._identity(weights, task)}.json"
        if path.is_file():
            return Run.from_dict(json.loads(path.read_text()))
        found = self._score(self._loaded_base, task, weights)
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(f".{os.getpid()}")
        beside.write_text(json.dumps(asdict(found)))
        beside.replace(path)
        return found

    def _identity(self, weights: str, task: Task) -> str:
        from importlib.metadata import version

        files = sorted(self.folder.rglob("*")) if self.folder else []
        return identify(
            code=hash_code(),
            weights=weights,
            task=asdict(task),
            limit=self.limit,
            settings=self.settings,
            definitions=[hash_file(file) for file in files if file.is_file()],
            versions=[version(name) for name in ("lm-eval", "torch", "transformers")],
        )

    def _score(self, model: Any, task: Task, weights: str) -> Run:
        import lm_eval  # pyright: ignore[reportMissingImports]

        evaluate: Any = lm_eval.simple_evaluate  # its decorator hides its arguments
        before, began = model.calls, time.monotonic()
        model.length = self.settings.get("length") or task.length
        try:
            found = evaluate(
                model=model, tasks=[task.name], num_fewshot=task.shots, limit=self.limit,
                task_manager=self._definitions,
                bootstrap_iters=self.bootstrap, log_samples=False,
            )  # fmt: skip
        except KeyError as error:
            raise RequestError(
                f"lm-eval does not know the task {task.name} ({error.args[0]}). List its tasks with"
                " lm-eval ls tasks, or name a folder of definitions with --task-path."
            ) from None
        # lm-eval returns nothing where LOCAL_RANK is not 0
        metrics = None if found is None else _metrics(found["results"], task.name)
        return Run(
            metrics=broadcast_facts(metrics, 0),
            calls=model.calls - before,
            seconds=round(time.monotonic() - began, 2),
            weights=weights,
        )


def fingerprint(source: Source) -> str:
    """Hash what is scored: the packed tensors, or the files of a 16-bit model."""
    packed = (source.folder.quantization or {}).get("fingerprint")
    return packed or identify(shards=[hash_file(shard) for shard in source.folder.shards])


def cache() -> Path:
    """Return the folder in which scores of 16-bit models are kept."""
    return Path(os.environ.get(CACHE) or Path.home() / ".cache" / "quant-dllm") / "scores"


def _metrics(results: dict[str, Any], name: str) -> dict[str, tuple[float, float | None]]:
    """Take value and error of each metric: of the task or group itself, else of all its parts."""
    wanted = {name: results[name]} if name in results else results
    found = {}
    for task, row in wanted.items():
        for key, value in row.items():
            metric, _, rule = key.partition(",")
            if not rule or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            shown = metric if rule == "none" else f"{metric} ({rule})"
            shown = shown if len(wanted) == 1 else f"{task} {shown}"
            error = row.get(f"{metric}_stderr,{rule}")
            found[shown] = (float(value), error if isinstance(error, float) else None)
    return found


def _require_lm_eval() -> None:
    from importlib.util import find_spec

    if find_spec("lm_eval") is None:
        raise RequestError(
            "Tasks are lm-eval's, which is not installed. Run: pip install 'quant-dllm[eval]'"
        )
