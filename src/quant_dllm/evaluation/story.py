"""Measure a finished checkpoint against its 16-bit model, and let both write, for its report."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from quant_dllm.errors import ModelError, RequestError
from quant_dllm.evaluation.compare import read_records
from quant_dllm.evaluation.evaluate import evaluate
from quant_dllm.generation.chat import has_chat_template
from quant_dllm.generation.draft import Draft
from quant_dllm.generation.generate import begin, checked
from quant_dllm.models.load import unloaded
from quant_dllm.models.model import DiffusionLM
from quant_dllm.pipeline.leave import COMPARED, gather, write
from quant_dllm.record import BASE
from quant_dllm.report.findings import Measured, Sample, Written
from quant_dllm.track import Track, silent

PROMPTS = ("Once upon a time, there was a little dog. He",
           "Lily wanted to bake a cake with her mom. They")  # fmt: skip
QUESTIONS = ("Why is the sky blue?", "Write a short story about a dog and a cat.")


def measure(
    out: Path,
    against: str | None = None,
    text: Path | None = None,
    *,
    prompts: Sequence[str] = (),
    length: int = 64,
    temperature: float | None = None,
    sequences: int = 32,
    device: str = "cpu",
    seed: int = 0,
    track: Track = silent,
) -> Measured:
    """Compare a checkpoint with what it was made from.

    Args:
        out: The checkpoint.
        against: The 16-bit model; what the checkpoint names if not given.
        text: Held-out text; the bundled stories for ``tiny``.
        prompts: What both models write on from; stories or questions if not given.
        length: Tokens of each text.
        temperature: Of the texts; the family's own if not given.
        sequences: Windows of held-out text, of 256 tokens at most.
        device: Where to compute.
        seed: Of windows, masks and texts.
        track: Watches the progress.

    Raises:
        RequestError: The 16-bit model cannot be found; the checkpoint is none.
        QuantDLLMError: What `load` and `evaluate` raise.
    """
    record = gather(out).record
    model = unloaded(out, mask_token_id=record.mask_token_id)
    block = model.source.config.attention_block or 0
    name = against or record.base_model
    try:
        base = unloaded(name, mask_token_id=record.mask_token_id, attention_block=block)
    except ModelError as error:
        raise RequestError(
            f"{out} was made from {name}, which cannot be opened ({error}) Name the 16-bit model "
            "with --against."
        ) from None
    settings = {"length": length, "temperature": temperature, "seed": seed}
    prompts = prompts or (QUESTIONS if has_chat_template(model.tokenizer) else PROMPTS)
    for prompt in prompts:
        _begin(model, prompt, **settings)  # refuses before the weights are read
    found = evaluate(model, base, text, sequences=sequences, seed=seed, device=device, track=track)
    bits = f"{record.bits.code:.2g}-bit"
    samples = [
        Sample(
            prompt=prompt,
            answers=[_write(_begin(m, prompt, **settings), label)
                     for label, m in ((BASE, base), (bits, model))],
        )
        for prompt in track(prompts, "writing", len(prompts))
    ]  # fmt: skip
    return Measured(base=name, evaluation=asdict(found), samples=samples, settings=settings)


def add_comparison(out: Path, compared: Path) -> None:
    """Keep what `compare` measured of other recipes beside the checkpoint.

    Raises:
        RequestError: There are no such records.
    """
    path = compared / "records.jsonl" if compared.is_dir() else compared
    if not path.is_file() or not read_records(path):
        raise RequestError(
            f"{compared} holds no records of quant-dllm compare. Make some with: "
            "quant-dllm compare MODEL -r RECIPE -r RECIPE -o DIR"
        )
    write(out / COMPARED, path.read_text())


def _begin(
    model: DiffusionLM, prompt: str, *, length: int, temperature: float | None, seed: int
) -> Draft:
    """Lay out a text; an instructed model is asked, another writes on."""
    chat = has_chat_template(model.tokenizer)
    given = checked({"temperature": temperature})
    return begin(model, prompt, given, length=length, chat=chat, seed=seed, watched=True)


def _write(draft: Draft, label: str) -> Written:
    """Let a model write, and note every token as it comes."""
    events: list[tuple[int, int, str, float]] = []
    before: list[Any] = [(None, 0.0)] * draft.length
    for _ in draft.steps():
        now = draft.cells()
        events += [
            (draft.step, i, piece, round(sure, 3))
            for i, ((piece, sure), (old, _)) in enumerate(zip(now, before, strict=True))
            if piece is not None and (piece != old or before[i][0] is None)
        ]
        before = now
    events = _up_to_the_end(draft, events)
    return Written(
        name=label,
        length=draft.length,
        steps=draft.step,
        seconds=round(draft.seconds, 2),
        events=events,
    )


def _up_to_the_end(
    draft: Draft, events: list[tuple[int, int, str, float]]
) -> list[tuple[int, int, str, float]]:
    """Leave out what stands behind the token that ends the answer."""
    answer = draft.answer
    end = next((i for i, token in enumerate(answer) if token in draft.ends), len(answer))
    return [event for event in events if event[1] < end]
