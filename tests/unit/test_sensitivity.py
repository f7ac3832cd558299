"""One budget over all matrices: how it is spent, and what by."""

from itertools import product

import pytest
import torch

from quant_dllm.errors import RecipeError
from quant_dllm.pipeline.sensitivity import draw
from quant_dllm.precision.sensitivity import SensitivityBasedBitAllocation, spend, upper_hull
from quant_dllm.quantizers.daq import DataAwareAnyOrderQuantizer
from quant_dllm.statistics.sensitivity import NOISE, expected_increase
from tests.conftest import correlated_layer

POLICY = SensitivityBasedBitAllocation


def curves(blocks, seed, convex=True):
    dice = torch.Generator().manual_seed(seed)
    size = torch.rand(blocks, 1, generator=dice, dtype=torch.float64) ** 4
    if convex:
        return size * torch.tensor(NOISE, dtype=torch.float64)
    return (size * torch.rand(blocks, 4, generator=dice)).sort(dim=1, descending=True).values


def total(increase, orders):
    return increase.gather(1, orders[:, None] - 1).sum().item()


def brute_force(increase, cost, budget):
    found = (torch.tensor(orders) for orders in product((1, 2, 3, 4), repeat=len(cost)))
    return min(total(increase, o) for o in found if int((cost * o).sum()) <= budget)


@pytest.mark.parametrize("budget", [6, 9, 12, 15, 24])
@pytest.mark.parametrize("seed", range(4))
def test_blocks_of_one_size_get_the_best_there_is(seed, budget):
    increase, cost = curves(6, seed), torch.ones(6, dtype=torch.long)
    orders = spend(increase, cost, budget)
    assert total(increase, orders) == pytest.approx(brute_force(increase, cost, budget), rel=1e-12)
    assert int(orders.sum()) == budget  # every bit helps, and each is spent


@pytest.mark.parametrize("convex", [True, False])
@pytest.mark.parametrize("seed", range(8))
def test_blocks_of_many_sizes_come_within_one_step_of_the_best(seed, convex):
    dice = torch.Generator().manual_seed(seed)
    increase = curves(6, seed, convex)
    cost = torch.randint(1, 9, (6,), generator=dice) * 8
    for budget in (int(cost.sum() * share) for share in (1.0, 1.4, 2.0, 2.7, 3.9)):
        orders = spend(increase, cost, budget)
        assert int((orders * cost).sum()) <= budget and orders.min() >= 1 and orders.max() <= 4
        best, step = brute_force(increase, cost, budget), (increase[:, 0] - increase[:, 3]).max()
        assert best - 1e-12 <= total(increase, orders) <= best + step.item()


@pytest.mark.parametrize("bits", [1.0, 1.75, 2.0, 2.1, 2.25, 4.0])
def test_a_budget_is_never_exceeded_and_hardly_missed(bits):
    dice = torch.Generator().manual_seed(0)
    widths = torch.randint(1, 129, (500,), generator=dice)
    cost = widths * torch.randint(1, 9, (500,), generator=dice) * 32
    weights = int(cost.sum())
    orders = spend(curves(500, 0), cost, POLICY(bits=bits).budget(weights))
    mean = int((orders * cost).sum()) / weights
    assert bits - 1e-3 < mean <= bits
    again = spend(curves(500, 0), cost, POLICY(bits=bits).budget(weights))
    assert torch.equal(orders, again)


def test_a_tenth_is_a_tenth():
    assert POLICY(bits=2.1).budget(10) == 21  # 2.1 * 10 is 21.0 by luck, 2.3 * 10 is 22.9 …
    assert POLICY(bits=2.3).budget(10) == 23


def test_a_step_that_gains_nothing_alone_is_taken_with_the_next():
    increase = torch.tensor([[1.0, 1.0, 0.1, 0.1], [0.6, 0.4, 0.3, 0.25]], dtype=torch.float64)
    hull = upper_hull(-increase.diff(dim=1))
    assert torch.allclose(hull[0], torch.tensor([0.45, 0.45, 0.0], dtype=torch.float64))
    assert torch.allclose(hull[1], -increase[1].diff())
    assert spend(increase, torch.tensor([1, 1]), 4).tolist() == [3, 1]


def test_what_is_not_sensitive_stays_at_one_plane():
    increase = torch.tensor([[1.0, 0.2, 0.1, 0.0], [0.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    assert spend(increase, torch.tensor([5, 5]), 100).tolist() == [4, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 0.9}, "from 1 to 4"),
        ({"bits": 4.5}, "from 1 to 4"),
        ({"bits": float("nan")}, "from 1 to 4"),
        ({"tokens": 0}, "at least 1"),
        ({"block_size": 0}, "at least 1"),
    ],
)
def test_a_policy_that_means_nothing_is_refused(options, message):
    with pytest.raises(RecipeError, match=message):
        POLICY(**options)
    with pytest.raises(RecipeError, match="one plane a block takes 7"):
        spend(curves(2, 0), torch.tensor([3, 4]), 6)


def test_the_expected_increase_is_the_formula():
    weight, x, stats = correlated_layer(6, 20)
    g = torch.randn(len(x), generator=torch.Generator().manual_seed(2)).square()
    fisher = (x * g[:, None]).T @ x
    found = expected_increase(weight, stats.moment, fisher, 0.01, 8)
    damped = stats.hessian + 0.01 * stats.hessian.diagonal().mean() * torch.eye(20)
    U = torch.linalg.cholesky(torch.linalg.inv(damped.double()), upper=True)
    noise = [float(U[j] @ fisher.double() @ U[j] / U[j, j] ** 2) for j in range(20)]
    column = [0.5 * float(weight[:, j].double().square().sum()) * noise[j] for j in range(20)]
    blocks = torch.tensor([sum(column[i : i + 8]) for i in (0, 8, 16)], dtype=torch.float64)
    expected = blocks[:, None] * torch.tensor(NOISE, dtype=torch.float64)
    assert torch.allclose(found, expected, rtol=1e-3)  # float32, inverse of condition 1e3


def test_it_foretells_what_rounding_costs():
    """Weights rounded for H, the cost taken under another weighting of the same tokens."""
    weight, x, stats = correlated_layer(48, 96, tokens=2048)
    g = torch.rand(len(x), generator=torch.Generator().manual_seed(2)).square() + x[:, 3].square()
    fisher = (x * g[:, None]).T @ x
    expected = expected_increase(weight, stats.moment, fisher, 0.01, 32).sum(0)
    quantizer = DataAwareAnyOrderQuantizer(emphasis=1.0, feedback="in-sweep", refinements=1)
    for order in (2, 3, 4):
        rounded = quantizer.quantize(weight, stats, torch.full((3,), order), 32).dequantize()
        error = weight - rounded
        cost = 0.5 * ((error @ fisher) * error).sum().item()
        assert 0.5 < expected[order - 1].item() / cost < 2.0


def test_tokens_are_drawn_from_the_distribution():
    logits = torch.tensor([[0.0, 1.0, -1.0, -torch.inf]])
    u = (torch.arange(1000) + 0.5) / 1000
    drawn = draw(logits.expand(1000, 4), u).bincount(minlength=4) / 1000
    assert torch.allclose(drawn, logits.softmax(-1)[0], atol=2e-3)
    assert draw(logits, torch.tensor([1.0 - 2**-24])).item() == 2  # never what cannot be
    assert draw(logits, torch.tensor([0.0])).item() == 0
