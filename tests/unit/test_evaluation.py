"""The bound on models for which it is known in closed form."""

import math
from types import SimpleNamespace

import pytest
import torch

from quant_dllm.evaluation.divergence import divergence
from quant_dllm.evaluation.likelihood import mean_and_error, nelbo
from quant_dllm.evaluation.masks import at_ratio, stratified
from quant_dllm.models.load import unloaded

MASK = 5


class Table:
    """A model that knows the tokens of some positions and guesses the rest from a fixed table."""

    mask_token_id = MASK
    device = torch.device("cpu")
    source = SimpleNamespace(config=SimpleNamespace(vocab=6))

    def __init__(self, log_p):
        self.log_p = log_p

    def logits_at(self, canvas, where, text):
        return self.log_p.expand(*canvas.shape, -1)[where]


class Copier(Table):
    """A model of text that repeats one token: it is sure once any token of the row is visible."""

    def __init__(self, vocab=5):
        super().__init__(torch.zeros(6))
        self.vocab = vocab

    def logits_at(self, canvas, where, text):
        visible = torch.where(canvas == MASK, -1, canvas).amax(1)
        logits = torch.full((*canvas.shape, 6), -torch.inf)
        for row, token in enumerate(visible.tolist()):
            choices = range(self.vocab) if token < 0 else [token]
            for choice in choices:
                logits[row, :, choice] = -math.log(len(choices))
        return logits[where]


def test_the_bound_of_independent_tokens_is_their_cross_entropy():
    p = torch.tensor([0.5, 0.2, 0.1, 0.1, 0.1, 0.0])
    windows = torch.randint(5, (40, 32), generator=torch.Generator().manual_seed(0))
    hidden = stratified(40, 32, 32, seed=1)
    bound = nelbo(Table(p.log()), windows, hidden)
    exact = -p.log()[windows].mean(1)
    # every l weighs the mean over l random tokens: unbiased for each window
    mean, error = mean_and_error(bound - exact)
    assert abs(mean) < 4 * error + 1e-6
    constant = torch.zeros(8, 32, dtype=torch.long)
    bound = nelbo(Table(p.log()), constant, stratified(8, 4, 32, seed=0))
    assert torch.allclose(bound, torch.full((8,), -math.log(0.5)), atol=1e-6)


def test_the_bound_of_repeated_tokens_is_tight():
    """All tokens equal: −log p = log 5 for the window; the bound counts it where all is hidden."""
    length, draws = 16, 16  # a draw for each l, so that the mean over l is exact
    windows = torch.randint(5, (30, 1), generator=torch.Generator().manual_seed(0)).expand(30, 16)
    bound = nelbo(Copier(), windows, stratified(30, draws, length, seed=0))
    assert torch.allclose(bound * length, torch.full((30,), math.log(5)), atol=1e-4)


def test_strata_cover_every_count_evenly():
    length = 40
    counts = stratified(500, 8, length, seed=0).sum(-1)
    assert counts.min() >= 1 and counts.max() <= length
    by_draw = counts.sort(1).values
    for d in range(8):
        assert ((by_draw[:, d] - 1) // 5 == d).float().mean() > 0.99  # one in each eighth
    frequency = torch.bincount(counts.flatten(), minlength=length + 1)[1:] / counts.numel()
    assert (frequency - 1 / length).abs().max() < 0.012  # 4000 draws: four deviations


def test_hidden_places_are_uniform():
    hidden = at_ratio(4000, 20, 0.25, seed=0)
    assert (hidden.sum(1) == 5).all()
    assert (hidden.float().mean(0) - 0.25).abs().max() < 0.03  # four deviations


def test_one_seed_gives_the_same_masks():
    assert torch.equal(stratified(3, 4, 10, 7), stratified(3, 4, 10, 7))
    assert not torch.equal(stratified(3, 4, 10, 7), stratified(3, 4, 10, 8))


def test_divergence_is_the_kl_of_two_tables():
    p = torch.tensor([0.5, 0.2, 0.1, 0.1, 0.05, 0.05])
    q = torch.tensor([0.1, 0.6, 0.1, 0.1, 0.05, 0.05])
    windows = torch.zeros(6, 20, dtype=torch.long)
    kl, same = divergence(Table(q.log()), Table(p.log()), windows, at_ratio(6, 20, 0.5, 0))
    expected = (p * (p / q).log()).sum()
    assert torch.allclose(kl, expected.expand(6), atol=1e-5)
    assert (same == 0).all()
    kl, same = divergence(Table(p.log()), Table(p.log()), windows, at_ratio(6, 20, 0.5, 0))
    assert torch.allclose(kl, torch.zeros(6), atol=1e-6) and (same == 1).all()


def test_the_error_is_the_standard_error_of_the_mean():
    values = torch.tensor([1.0, 2.0, 3.0, 4.0])
    mean, error = mean_and_error(values)
    assert mean == 2.5
    assert error == pytest.approx(values.std().item() / 2)


def test_a_16_bit_model_stores_16_bits_and_its_file_a_header():
    bits = unloaded("tiny").bits()
    assert bits.code == bits.stored == 16
    assert 16 < bits.file < 16.01  # 6336 bytes over 8.3 million weights
