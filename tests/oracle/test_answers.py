"""The likelihood of an answer: against closed forms, and against all masks there are."""

from dataclasses import replace
from itertools import combinations

import pytest
import torch

from quant_dllm.errors import RequestError
from quant_dllm.evaluation.answers import LEAST_RATE, Answer, hide, log_likelihoods
from quant_dllm.models.scoring import Scoring

VOCAB, MASK = 12, 11
COUNT, RATE = Scoring(), Scoring(hiding="rate", stratum=32)


class Known:
    """Its logits at a position are a fixed table's, chosen by what is visible to the left of it."""

    mask_token_id, device = MASK, torch.device("cpu")

    def __init__(self, looks=True):
        self.looks, self.rows = looks, 0
        self.table = torch.randn(97, VOCAB, generator=torch.Generator().manual_seed(0))

    def logits_at(self, canvas, where, text):
        self.rows += len(canvas)
        weights = torch.arange(1, canvas.shape[1] + 1)
        seen = (torch.where(canvas == MASK, 0, canvas + 1) * weights).cumsum(1) - 0
        batch, position = where.nonzero(as_tuple=True)
        key = seen[batch, position] if self.looks else torch.zeros_like(position)
        return self.table[(key + 7 * position) % 97]


def exact(model, answer):
    """Average over every number of hidden tokens and every set of that size."""
    text, start, length = torch.tensor([answer.text]), len(answer.before), len(answer.tokens)
    total = 0.0
    for count in range(1, length + 1):
        subsets = list(combinations(range(start, start + length), count))
        for subset in subsets:
            where = torch.zeros_like(text, dtype=torch.bool)
            where[0, list(subset)] = True
            logits = model.logits_at(torch.where(where, MASK, text), where, text)
            log_p = logits.log_softmax(-1).gather(-1, text[where][:, None]).sum()
            total += log_p.item() / count / len(subsets)
    return total


@pytest.mark.parametrize("scoring", [COUNT, RATE])
def test_the_estimate_is_the_mean_over_all_masks(scoring):
    answer = Answer((1, 2, 3), (4, 5, 6, 7), draws=16384)
    found = log_likelihoods(Known(), [answer], scoring)[0]
    # both recipes hide each number of tokens equally often; a draw deviates by about 6 nats
    assert found == pytest.approx(exact(Known(), answer), abs=0.25)


@pytest.mark.parametrize("length", [1, 2, 5, 9])
def test_tokens_that_do_not_depend_on_each_other_are_exact_if_alike(length):
    model = Known(looks=False)
    model.table[:] = model.table[0]
    answer = Answer((1,), (3,) * length)
    expected = length * model.table[0].log_softmax(-1)[3].item()
    assert log_likelihoods(model, [answer], COUNT)[0] == pytest.approx(expected, rel=1e-5)


def test_one_draw_of_an_answer_of_one_token_is_exact():
    answer = Answer((1, 2), (5,), draws=1)
    model = Known()
    assert log_likelihoods(model, [answer], COUNT)[0] == pytest.approx(
        exact(model, answer), rel=1e-5
    )


def test_counts_are_spread_evenly_within_a_stratum():
    """Llada's rule: with first draw k, draw i of b hides ((round(k + i l / b) − 1) mod l) + 1."""
    hidden, p = hide(16, 8, COUNT, torch.Generator().manual_seed(3))
    counts = hidden.sum(1)
    assert torch.equal(p, counts / 16)
    steps = (counts.roll(-1) - counts) % 16
    assert (steps == 2).all()  # l / b = 2, around the circle
    few, _ = hide(3, 8, COUNT, torch.Generator().manual_seed(0))
    assert few.sum(1).min() >= 1 and few.sum(1).max() == 3


def test_rates_are_spread_evenly_within_a_stratum():
    _, p = hide(50, 32, RATE, torch.Generator().manual_seed(1))
    t = (p - LEAST_RATE) / (1 - LEAST_RATE)
    assert torch.allclose((t.sort().values.diff()), torch.full((31,), 1 / 32), atol=1e-5)
    hidden, p = hide(400, 320, RATE, torch.Generator().manual_seed(1))
    assert (hidden.float().mean(1) - p).abs().max() < 0.1  # four deviations of 400 coins


def test_an_answer_scores_the_same_in_any_company():
    answers = [Answer((1, 2), (3, 4)), Answer((5,), (6, 7, 8)), Answer((1, 2), (3, 9)),
               Answer((), (2, 2, 2)), Answer((1,), ())]  # fmt: skip
    together = log_likelihoods(Known(), answers, COUNT)
    alone = [log_likelihoods(Known(), [answer], COUNT)[0] for answer in answers]
    assert together == pytest.approx(alone, rel=1e-5)
    assert together[-1] == 0.0
    assert log_likelihoods(Known(), answers, COUNT, seed=1) != together


def test_guidance_moves_the_logits_by_what_the_prompt_changes():
    model, answer = Known(), Answer((1, 2), (5,), guidance=1.5, draws=1)
    text = torch.tensor([answer.text])
    where = torch.tensor([[False, False, True]])
    seeing = model.logits_at(torch.where(where, MASK, text), where, text)
    blind = model.logits_at(torch.full_like(text, MASK), where, text)
    expected = (blind + 2.5 * (seeing - blind)).log_softmax(-1)[0, 5].item()
    assert log_likelihoods(model, [answer], COUNT)[0] == pytest.approx(expected, rel=1e-5)


def test_calls_are_canvases():
    model = Known()
    answers = [
        Answer((1,), (2, 3)),
        Answer((1,), (2, 3), guidance=0.5),
        Answer((1,), (2,), draws=1),
    ]
    log_likelihoods(model, answers, COUNT)
    assert model.rows == sum(answer.calls for answer in answers) == 128 + 256 + 1


def test_what_stays_visible_behind_the_answer_is_never_hidden():
    seen = []

    class Watching(Known):
        def logits_at(self, canvas, where, text):
            seen.append(canvas)
            return super().logits_at(canvas, where, text)

    log_likelihoods(Watching(), [Answer((1,), (2, 3), behind=(9,))], RATE)
    canvas = torch.cat(seen)
    assert (canvas[:, -1] == 9).all() and (canvas[:, 0] == 1).all()
    assert (canvas[:, 1:3] == MASK).any()


def test_draws_that_do_not_fill_strata_are_refused():
    with pytest.raises(RequestError, match="1 or a multiple of 8"):
        replace(COUNT, draws=12)
    assert replace(COUNT, draws=1).draws == 1
