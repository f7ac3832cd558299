"""Estimate how likely a model finds an answer behind a prompt: Monte-Carlo, as its authors do.

With l tokens of an answer, a mask that hides some of them with probability p each, and CE the
cross-entropy of a hidden token,

    log p(answer | prompt) ≈ −mean over draws of  Σ_hidden CE / p.

The estimate is a bound in expectation. Draws of one answer are seeded by its own tokens, so that it
does not matter what else is scored, and two models are scored under the same masks.
"""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from quant_dllm.distributed import spread
from quant_dllm.evaluation.likelihood import BATCH_TOKENS, Denoiser
from quant_dllm.evaluation.masks import lowest
from quant_dllm.models.scoring import Scoring
from quant_dllm.track import Track, silent

LEAST_RATE = 1e-3  # Dream's ε: the least probability with which a token is hidden


@dataclass(frozen=True)
class Answer:
    """What is scored.

    Attributes:
        before: Tokens of the prompt.
        tokens: Tokens of the answer.
        behind: Tokens that stay visible behind the answer.
        guidance: w of classifier-free guidance.
        draws: Masks.
    """

    before: tuple[int, ...]
    tokens: tuple[int, ...]
    behind: tuple[int, ...] = ()
    guidance: float = 0.0
    draws: int = 128

    @property
    def text(self) -> tuple[int, ...]:
        """Join the three."""
        return self.before + self.tokens + self.behind

    @property
    def calls(self) -> int:
        """Count the canvases that go through the model."""
        return self.draws * (2 if self.guidance else 1)


@dataclass(frozen=True)
class _Row:
    """One draw: where it belongs, its text, what is hidden, and 1 / (p · draws)."""

    answer: int
    text: Int[Tensor, " length"]
    hidden: Bool[Tensor, " length"]
    prompt: int
    weight: float


def hide(
    length: int, draws: int, scoring: Scoring, dice: torch.Generator
) -> tuple[Bool[Tensor, "draws length"], Float[Tensor, " draws"]]:
    """Draw masks over an answer of ``length`` tokens.

    Returns:
        What each draw hides, and the probability p with which it hid a token.
    """
    stratum = min(scoring.stratum, draws)
    place = torch.arange(stratum) / stratum
    noise = torch.rand(draws, length, generator=dice)
    if scoring.hiding == "rate":
        t = (torch.rand(draws // stratum, 1, generator=dice) + place) % 1.0
        p = (LEAST_RATE + (1 - LEAST_RATE) * t).flatten()
        return noise < p[:, None], p
    first = torch.randint(1, length + 1, (draws // stratum, 1), generator=dice)
    count = (((first + place * length).round().long() - 1) % length + 1).flatten()
    return lowest(noise, count), count / length


@torch.no_grad()
def log_likelihoods(
    model: Denoiser,
    answers: Sequence[Answer],
    scoring: Scoring,
    seed: int = 0,
    track: Track = silent,
) -> list[float]:
    """Estimate the log-likelihood of each answer, nats.

    Answers of one length share batches, so that nothing is padded.

    Args:
        model: The model.
        answers: What is scored; an answer of no tokens scores 0.
        scoring: The family's recipe; draws and guidance are each answer's own.
        seed: Seed of the draws.
        track: Watches the progress.
    """
    found = torch.zeros(len(answers), dtype=torch.float64)

    def alike(i: int) -> tuple[int, float]:
        return len(answers[i].text), answers[i].guidance

    batches = _batches(answers, sorted(range(len(answers)), key=alike), scoring, seed, alike)
    total = sum(-(-a.draws * len(a.text) // BATCH_TOKENS) for a in answers)

    def score(batch: tuple[list[_Row], float]) -> tuple[list[int], list[float]]:
        rows, guidance = batch
        return [row.answer for row in rows], _losses(model, rows, guidance).tolist()

    for at, losses in spread(batches, score, track, "likelihood", total):
        found.index_add_(0, torch.tensor(at), -torch.tensor(losses, dtype=torch.float64))
    return found.tolist()


def _batches(answers, order, scoring, seed, alike) -> Iterator[tuple[list[_Row], float]]:
    """Yield rows of one length and one weight of guidance, `BATCH_TOKENS` at a time."""
    for (length, guidance), some in groupby(order, key=alike):
        rows: list[_Row] = []
        for i in some:
            for row in _rows(i, answers[i], scoring, seed):
                rows.append(row)
                if len(rows) * length >= BATCH_TOKENS:
                    yield rows, guidance
                    rows = []
        if rows:
            yield rows, guidance


def _rows(index: int, answer: Answer, scoring: Scoring, seed: int) -> Iterator[_Row]:
    if not answer.tokens:
        return
    text = torch.tensor(answer.text)
    start, length = len(answer.before), len(answer.tokens)
    own = zlib.crc32(text.numpy().tobytes(), seed)  # 32 bits are all that a generator looks at
    dice = torch.Generator().manual_seed(own ^ start)
    hidden, p = hide(length, answer.draws, scoring, dice)
    for marked, rate in zip(hidden, p.tolist(), strict=True):
        where = torch.zeros(len(text), dtype=torch.bool)
        where[start : start + length] = marked
        yield _Row(index, text, where, start, 1 / (rate * answer.draws))


def _losses(model: Denoiser, rows: list[_Row], guidance: float) -> Float[Tensor, " rows"]:
    """Return each row's weighted sum of cross-entropies."""
    text = torch.stack([row.text for row in rows]).to(model.device)
    hidden = torch.stack([row.hidden for row in rows]).to(model.device)
    logits = model.logits_at(torch.where(hidden, model.mask_token_id, text), hidden, text).float()
    if guidance:
        start = torch.tensor([row.prompt for row in rows], device=model.device)
        prompt = torch.arange(text.shape[1], device=model.device) < start[:, None]
        without = torch.where(prompt, model.mask_token_id, text)
        canvas = torch.where(hidden, model.mask_token_id, without)
        blind = model.logits_at(canvas, hidden, without).float()
        logits = blind + (guidance + 1) * (logits - blind)
    loss = F.cross_entropy(logits, text[hidden], reduction="none").cpu()
    sums = torch.zeros(len(rows)).index_add_(0, hidden.cpu().nonzero()[:, 0], loss)
    return sums * torch.tensor([row.weight for row in rows])
