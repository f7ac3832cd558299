import logging

import pytest
import torch

from quant_dllm.errors import RecipeError
from quant_dllm.precision import abmp
from quant_dllm.precision.abmp import AdaptiveBlockwiseMixedPrecision
from quant_dllm.precision.uniform import Uniform
from quant_dllm.statistics.layer import LayerStatistics


def of_moment(moment):
    return LayerStatistics(moment, moment.diagonal(), tokens=1)


def by_definition(weight, stats, size, ratio, budget=2):
    """ABMP by the book: U from the inverse itself, scores by loops, ranks by sorting."""
    damped = stats.hessian + 0.01 * stats.hessian.diagonal().mean() * torch.eye(weight.shape[1])
    U = torch.linalg.cholesky(torch.linalg.inv(damped.double()), upper=True)
    starts = range(0, weight.shape[1], size)
    scores = [
        sum((weight[:, j].double() ** 2).sum() / U[j, j] ** 2
            for j in range(s, min(s + size, weight.shape[1])))
        for s in starts
    ]  # fmt: skip
    whole = weight.shape[1] // size
    k = min(int(ratio * len(scores) + 1e-9), whole // 2)
    ranked = sorted(range(whole), key=lambda b: scores[b])
    bits = [budget] * len(scores)
    for b in ranked[:k]:
        bits[b] -= 1
    for b in ranked[len(ranked) - k :]:
        bits[b] += 1
    return bits


@pytest.mark.parametrize("inputs", [160, 165])
@pytest.mark.parametrize("ratio", [0.0, 0.05, 0.1, 0.25, 0.5])
def test_it_equals_the_definition(inputs, ratio):
    dice = torch.Generator().manual_seed(1)
    x = torch.randn(400, inputs, generator=dice) * torch.linspace(0.3, 3, inputs)
    weight, stats = torch.randn(9, inputs, generator=dice), LayerStatistics.gather([x], 0.01)
    policy = AdaptiveBlockwiseMixedPrecision(block_size=8, ratio=ratio)
    assert policy.allocate(weight, stats).tolist() == by_definition(weight, stats, 8, ratio)


@pytest.mark.parametrize("inputs", [64, 128, 288, 300, 768, 3584])
@pytest.mark.parametrize("ratio", [0.05, 0.1, 0.15, 0.5])
def test_the_mean_over_weights_is_the_budget_exactly(inputs, ratio):
    dice = torch.Generator().manual_seed(0)
    stats = of_moment(torch.eye(inputs) * torch.rand(inputs, generator=dice))
    policy = AdaptiveBlockwiseMixedPrecision(block_size=16, ratio=ratio)
    bits = policy.allocate(torch.randn(3, inputs, generator=dice), stats)
    widths = torch.tensor([16] * (inputs // 16) + [inputs % 16] * (inputs % 16 > 0))
    assert int((bits * widths).sum()) == 2 * inputs
    moved = min(int(ratio * len(bits) + 1e-9), inputs // 16 // 2)
    assert (bits == 1).sum() == (bits == 3).sum() == moved


def test_the_least_important_block_pays_for_the_most_important():
    weight = torch.ones(2, 40)
    weight[:, 8:16], weight[:, 24:32] = 0.1, 5.0
    stats = of_moment(torch.eye(40))
    policy = AdaptiveBlockwiseMixedPrecision(block_size=8, ratio=0.2)
    assert policy.allocate(weight, stats).tolist() == [2, 1, 2, 3, 2]


def test_where_no_bit_moves_the_log_says_so(caplog):
    abmp._say_that_none_moves.cache_clear()
    stats = of_moment(torch.eye(288))
    with caplog.at_level(logging.INFO, "quant_dllm"):
        bits = AdaptiveBlockwiseMixedPrecision().allocate(torch.ones(2, 288), stats)
    assert bits.tolist() == [2, 2, 2]
    assert "moves no bit in matrices of 3 blocks" in caplog.text


@pytest.mark.parametrize(
    ("policy", "options", "message"),
    [
        (AdaptiveBlockwiseMixedPrecision, {"ratio": 0.6}, "must be in"),
        (AdaptiveBlockwiseMixedPrecision, {"bits": 1}, "some blocks would have 0 bits"),
        (Uniform, {"bits": 0}, "from 1 to 8"),
        (Uniform, {"bits": 9}, "from 1 to 8"),
        (Uniform, {"block_size": 0}, "at least 1"),
    ],
)
def test_a_budget_that_cannot_be_met_is_refused(policy, options, message):
    with pytest.raises(RecipeError, match=message):
        policy(**options)
