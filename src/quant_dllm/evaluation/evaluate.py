"""Measure a model: its bound on held-out text, and its distance from the model it was made of."""

import math
import time
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from quant_dllm.calibration.corpus import fingerprint, token_windows
from quant_dllm.errors import ModelError, RequestError, TextError
from quant_dllm.evaluation.divergence import divergence
from quant_dllm.evaluation.likelihood import mean_and_error, nelbo
from quant_dllm.evaluation.masks import MASK_RATIOS, at_ratio, stratified
from quant_dllm.evaluation.remembering import Remembering
from quant_dllm.models.bundled import bundled_text
from quant_dllm.models.load import fill, unloaded, usable_device
from quant_dllm.models.model import DiffusionLM
from quant_dllm.record import Bits
from quant_dllm.track import Track, silent


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What was measured; every ``_stderr`` is over windows.

    Attributes:
        nelbo: Bound on the negative log-likelihood, nats a token.
        perplexity: exp(nelbo): a bound too.
        kl: KL(base ‖ model) at hidden positions, nats, averaged over the mask ratios; ``None``
            without a base, as the next six.
        kl_by_mask_ratio: The same at each ratio.
        top1_agreement: Share of hidden positions at which both models' first choice is the same.
        nelbo_excess: nelbo less the base's, under the same masks; its error is a paired one.
        text: Fingerprint of the token windows.
        seconds: Time that measuring took.
    """

    nelbo: float
    nelbo_stderr: float
    perplexity: float
    nelbo_excess: float | None = None
    nelbo_excess_stderr: float | None = None
    kl: float | None = None
    kl_stderr: float | None = None
    kl_by_mask_ratio: dict[str, float] | None = None
    top1_agreement: float | None = None
    top1_by_mask_ratio: dict[str, float] | None = None
    bits: Bits
    sequences: int
    length: int
    draws: int
    seed: int
    text: str
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return JSON's types."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Yardstick:
    """Windows of text and masks over them, shared by all models that are to be compared.

    Attributes:
        base: The 16-bit model to compare with; its own bound is measured once.
        draws: Masks a window for the bound.
        seed: Seed of the masks.
    """

    windows: Int[Tensor, "n length"]
    base: DiffusionLM | None = None
    draws: int = 8
    seed: int = 0
    track: Track = silent

    def measure(self, model: DiffusionLM) -> Evaluation:
        """Measure a model.

        Raises:
            RequestError: The base has another vocabulary.
        """
        began = time.monotonic()
        bound = self._base_bound if model is self.base else self._bound(model)
        mean, error = mean_and_error(bound)
        compared = {}
        if self.base is not None and model is not self.base:
            compared = self._compare(model, self.base, bound)
        sequences, length = self.windows.shape
        return Evaluation(
            nelbo=mean,
            nelbo_stderr=error,
            perplexity=math.exp(min(mean, 700.0)),
            bits=model.bits(),
            sequences=sequences,
            length=length,
            draws=self.draws,
            seed=self.seed,
            text=fingerprint(self.windows),
            seconds=round(time.monotonic() - began, 2),
            **compared,
        )

    @cached_property
    def _base_bound(self) -> Float[Tensor, " n"]:
        assert self.base is not None
        return self._bound(self.base)

    @cached_property
    def _remembering(self) -> Remembering:
        assert self.base is not None
        return Remembering(self.base)

    def _bound(self, model: DiffusionLM) -> Float[Tensor, " n"]:
        n, length = self.windows.shape
        block = model.source.config.attention_block
        hidden = stratified(n, self.draws, length, self.seed, block)
        return nelbo(model, self.windows, hidden, self.track, block)

    def _compare(self, model: DiffusionLM, base: DiffusionLM, bound: Tensor) -> dict[str, Any]:
        check_vocabularies(model, base)
        kls, sames = [], []
        for i, ratio in enumerate(MASK_RATIOS):
            n, length = self.windows.shape
            block = model.source.config.attention_block
            hidden = at_ratio(n, length, ratio, self.seed + 1 + i, block)
            kl, same = divergence(model, self._remembering, self.windows, hidden, self.track)
            kls.append(kl)
            sames.append(same)
        excess, excess_error = mean_and_error(bound - self._base_bound)
        kl, kl_error = mean_and_error(torch.stack(kls).mean(0))
        return {
            "nelbo_excess": excess,
            "nelbo_excess_stderr": excess_error,
            "kl": kl,
            "kl_stderr": kl_error,
            "kl_by_mask_ratio": _by_ratio(kls),
            "top1_agreement": torch.stack(sames).mean().item(),
            "top1_by_mask_ratio": _by_ratio(sames),
        }


def evaluate(
    model: str | Path | DiffusionLM,
    against: str | Path | DiffusionLM | None = None,
    text: str | Path | None = None,
    *,
    sequences: int = 64,
    length: int = 256,
    draws: int = 8,
    seed: int = 0,
    device: str | torch.device = "cpu",
    mask_token_id: int | None = None,
    attention_block: int | None = None,
    track: Track = silent,
) -> Evaluation:
    """Measure a model on text that it has not seen.

    Args:
        model: A model, or what `load` takes; the weights of an `unloaded` one are read.
        against: The 16-bit model to compare with.
        text: Text file; the bundled held-out stories for ``tiny`` and what was made of it.
        sequences: Windows of text.
        length: Tokens of a window, at most the model's context.
        draws: Masks a window for the bound.
        seed: Seed of windows and masks: models measured with one seed share both.
        device: Where to load models given by name.
        mask_token_id: The mask token, where the model's folder does not say.
        attention_block: See `open_model`.
        track: Watches the progress.

    Raises:
        TextError: No text, or too little of it.
        RequestError: Two models of different vocabularies, or nothing to measure on.
        QuantDLLMError: What `load` raises.
    """
    if min(sequences, length, draws) < 1:
        raise RequestError(
            f"{sequences} sequences of {length} tokens with {draws} draws; "
            "at least one of each is wanted."
        )

    target = usable_device(device)

    def opened(m: str | Path | DiffusionLM) -> DiffusionLM:
        if isinstance(m, DiffusionLM):
            return m
        return unloaded(m, mask_token_id=mask_token_id, attention_block=attention_block)

    def filled(m: DiffusionLM) -> DiffusionLM:
        return fill(m, device=target) if m.device.type == "meta" else m

    measured, base = opened(model), None if against is None else opened(against)
    windows = held_out(measured, text, sequences=sequences, length=length, seed=seed)
    if base is not None:
        check_vocabularies(measured, base)
    yardstick = Yardstick(
        windows=windows,
        base=None if base is None else filled(base),
        draws=draws,
        seed=seed,
        track=track,
    )
    return yardstick.measure(filled(measured))


def check_vocabularies(model: DiffusionLM, base: DiffusionLM) -> None:
    """Refuse two models whose predictions cannot be compared.

    Raises:
        RequestError: They have different vocabularies.
    """
    ours, theirs = model.source.config.vocab, base.source.config.vocab
    if ours != theirs:
        raise RequestError(
            f"{model.source.name} has {ours} tokens and {base.source.name} {theirs}; "
            "two models of one vocabulary can be compared."
        )


def held_out(
    model: DiffusionLM, text: str | Path | None, *, sequences: int, length: int, seed: int
) -> Int[Tensor, "n length"]:
    """Cut windows out of a text, or out of the bundled held-out stories.

    Windows for a block-causal model are whole blocks.

    Raises:
        TextError: There is no text, or too little of it.
        ModelError: The model has no tokenizer.
    """
    path = Path(text) if text is not None else bundled_text(model.source, "heldout")
    if path is None:
        raise TextError(
            f"{model.source.name} has no held-out text of its own; pass one with --text FILE."
        )
    if model.tokenizer is None:
        raise ModelError(
            f"{model.source.folder.path} has no tokenizer, so that text cannot be read. "
            "Copy tokenizer.json beside the weights."
        )
    length, block = min(length, model.source.config.context), model.source.config.attention_block
    length = max(block, length // block * block) if block else length
    return token_windows(path, model.tokenizer, sequences=sequences, length=length, seed=seed)


def _by_ratio(values: list[Float[Tensor, " n"]]) -> dict[str, float]:
    return {str(r): v.mean().item() for r, v in zip(MASK_RATIOS, values, strict=True)}
