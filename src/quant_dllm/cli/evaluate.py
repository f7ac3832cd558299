"""``quant-dllm evaluate``."""

from pathlib import Path
from typing import Annotated, Any

import typer

from quant_dllm.cli.launch import is_first, launched
from quant_dllm.cli.options import (
    AsJson,
    AttentionBlock,
    Device,
    Gpus,
    MaskTokenId,
    Model,
    Seed,
    Text,
)


def evaluate(
    model: Model,
    against: Annotated[
        str | None, typer.Option(metavar="BASE", help="The 16-bit model to compare with.")
    ] = None,
    text: Text = None,
    sequences: Annotated[int, typer.Option(min=1, help="Windows of text.")] = 64,
    length: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens of a window, 256; with tasks: tokens to write."),
    ] = None,
    draws: Annotated[
        int | None, typer.Option(min=1, help="Masks a window, 8; with tasks: masks an answer.")
    ] = None,
    tasks: Annotated[
        str | None, typer.Option(metavar="NAME,…", help="Score lm-eval's tasks instead.")
    ] = None,
    suite: Annotated[
        str | None, typer.Option(help="A set of tasks: quant-dllm (the paper's), math-code.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Questions a task.")] = None,
    shots: Annotated[
        int | None, typer.Option(min=0, help="Examples in the prompts of tasks.")
    ] = None,
    task_path: Annotated[
        Path | None, typer.Option(help="Folder of further task definitions.")
    ] = None,
    cfg: Annotated[
        float | None, typer.Option(help="Weight of guidance in likelihood tasks.")
    ] = None,
    seed: Seed = 0,
    device: Device = "cpu",
    mask_token_id: MaskTokenId = None,
    attention_block: AttentionBlock = None,
    gpus: Gpus = 1,
    as_json: AsJson = False,
) -> None:
    """Measure a model's likelihood bound and its distance from another model, or score tasks.

    Example: quant-dllm evaluate tiny-2bit --against tiny
    """
    told = {
        "seed": seed, "device": device, "mask_token_id": mask_token_id,
        "attention_block": attention_block,
    }  # fmt: skip
    if launched(gpus):
        return
    if tasks or suite:
        settings = told | {"length": length, "draws": draws, "guidance": cfg}
        wanted = [name for name in (tasks or "").split(",") if name]
        _score(
            model, against, wanted, suite=suite, shots=shots, limit=limit, folder=task_path,
            settings=settings, as_json=as_json,
        )  # fmt: skip
        return
    measure = {"sequences": sequences, "length": length or 256, "draws": draws or 8}
    _measure(model, against, text, as_json=as_json, **measure, **told)


def _measure(model: str, against: str | None, text: Path | None, as_json: bool, **how: Any) -> None:
    from quant_dllm.cli.show import print_facts, print_json, track
    from quant_dllm.distributed import processes
    from quant_dllm.evaluation.evaluate import evaluate as run

    with processes():
        found = run(model, against, text, track=track, **how)
    if not is_first():
        return
    if as_json:
        print_json(found.to_dict())
        return
    facts = {
        "bound (NELBO)": f"{found.nelbo:.4f} ± {found.nelbo_stderr:.4f} nats a token",
        "perplexity": f"at most {found.perplexity:.2f}",
    }
    if found.kl is not None and found.kl_by_mask_ratio and found.top1_by_mask_ratio:
        facts |= {
            "over the base": f"{found.nelbo_excess:+.4f} ± {found.nelbo_excess_stderr:.4f}",
            "KL to the base": f"{found.kl:.4f} ± {found.kl_stderr:.4f} nats",
            "top-1 agreement": f"{found.top1_agreement:.1%}",
        }
        for ratio, kl in found.kl_by_mask_ratio.items():
            same = found.top1_by_mask_ratio[ratio]
            facts[f"  {float(ratio):.0%} masked"] = f"KL {kl:.4f}, top-1 {same:.1%}"
    bits = found.bits
    facts |= {
        "bits a weight": f"{bits.code:.3f} codes, {bits.stored:.3f} with scales, "
        f"{bits.file:.3f} of the file",
        "measured on": f"{found.sequences} windows of {found.length} tokens, {found.draws} masks "
        f"each, seed {found.seed}, text {found.text}, {found.seconds:.0f} s",
    }
    print_facts(facts)


def _score(
    model: str,
    against: str | None,
    tasks: list[str],
    *,
    suite: str | None,
    shots: int | None,
    as_json: bool,
    **how: Any,
) -> None:
    from quant_dllm.cli.show import print_json, print_table, track
    from quant_dllm.distributed import processes
    from quant_dllm.evaluation.suites import chosen
    from quant_dllm.evaluation.tasks import TaskEvaluation

    evaluation = TaskEvaluation(
        model=model, against=against, tasks=chosen(tasks, suite, shots), track=track, **how
    )
    with processes():
        found = list(evaluation.run())
    if not is_first():
        return
    if as_json:
        print_json({"model": model, "tasks": [score.to_dict() for score in found]})
        return
    columns = ("task", "metric", "score", "16 bits", "recovery", "model calls", "weights")
    rows = [row for score in found for row in _rows(score)]
    print_table(f"{model} on lm-eval's tasks; ± is one standard error", columns, rows)


def _rows(score: Any) -> list[tuple[str, ...]]:
    """Write a row for each metric of a task."""
    run, base, found = score.run, score.base, []
    for metric, value in run.metrics.items():
        recovery = score.recovery(metric)
        found.append(
            (
                score.task.name,
                metric,
                _number(*value),
                _number(*base.metrics[metric]) if base and metric in base.metrics else "-",
                f"{recovery[0]:.1f} ± {recovery[1]:.1f} %" if recovery else "-",
                str(run.calls) if base is None else f"{run.calls}, {base.calls}",
                run.weights if base is None else f"{run.weights}, {base.weights}",
            )
        )
    return found


def _number(value: float, error: float | None) -> str:
    return f"{value:.4f}" if error is None else f"{value:.4f} ± {error:.4f}"
