"""DAQ's closed forms against their definition: no step can be improved by moving its variable."""

from itertools import pairwise, product

import pytest
import torch

from quant_dllm.rounding.planes import (
    ColumnRounding,
    Fit,
    Terms,
    fit_greedy,
    fit_joint,
    loss,
    nearest_signs,
    start,
)


def random_fit(order, out=7, width=11, seed=0):
    dice = torch.Generator().manual_seed(seed)
    w = torch.randn(out, width, generator=dice)
    weight = torch.where(torch.rand(out, width, generator=dice) < 0.2, 3.0, 1.0)
    rows = torch.rand(order, out, generator=dice) + 0.3
    columns = torch.rand(order, width, generator=dice) + 0.5
    signs = nearest_signs(w, rows[:, :, None] * columns[:, None, :])
    return w, weight, Fit(rows, columns, signs)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("weighted", [True, False])
def test_row_and_column_scales_are_exact_minimisers(order, weighted):
    w, weight, fit = random_fit(order)
    weight = weight if weighted else None
    for k in range(order):
        columns_before = fit.columns[k].clone()
        fit.rescale(k, Terms(w, weight, fit.signs))
        after_columns = fit.columns[k].clone()
        fit.columns[k] = columns_before  # the row scales are optimal for the old columns
        assert_no_better(w, fit, weight, fit.rows[k])
        fit.columns[k] = after_columns  # the column scales are optimal for the new rows
        assert_no_better(w, fit, weight, fit.columns[k])


def assert_no_better(w, fit, weight, variable):
    """Moving any entry of ``variable`` either way must raise the objective."""
    least = loss(w.double(), as_double(fit), None if weight is None else weight.double())
    for i in range(len(variable)):
        for step in (1e-2, -1e-2):
            before = variable[i].item()
            variable[i] += step
            now = loss(w.double(), as_double(fit), None if weight is None else weight.double())
            variable[i] = before
            assert now > least


def as_double(fit):
    return Fit(fit.rows.double(), fit.columns.double(), fit.signs.double())


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_signs_are_the_nearest_of_all_sums(order):
    dice = torch.Generator().manual_seed(order)
    w = torch.randn(13, 9, generator=dice) * 2
    scales = torch.randn(order, 13, 9, generator=dice)  # of either sign, interleaving
    signs = nearest_signs(w, scales)
    reached = (signs * scales).sum(0)
    every = torch.stack(
        [sum(s * scales[k] for k, s in enumerate(p)) for p in product((-1, 1), repeat=order)]
    )
    assert torch.allclose((reached - w).abs(), (every - w).abs().amin(0), atol=1e-6)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_more_rounds_never_raise_the_objective(order):
    w, weight, _ = random_fit(1, 24, 32)
    losses = [loss(w, fit_joint(w, weight, order, rounds, 0.0), weight) for rounds in range(1, 12)]
    assert all(b <= a * (1 + 1e-5) for a, b in pairwise(losses))


def test_the_start_is_made_of_means():
    w, _, _ = random_fit(1)
    fit = start(w, 2)
    a = w.abs().mean(1)
    assert torch.allclose(fit.rows[0], a)
    assert torch.allclose(fit.columns[0], (w.abs() / a[:, None]).mean(0))
    rest = w - torch.outer(fit.rows[0], fit.columns[0]) * w.sign()
    assert torch.allclose(fit.rows[1], rest.abs().mean(1), atol=1e-6)
    assert torch.equal(fit.signs[1], rest.sign())


@pytest.mark.parametrize(
    ("order", "published", "left"),
    [(1, 0.358, 1e-3), (2, 0.112, 1e-3), (3, 0.034, 5e-2)],  # left: what 15 more rounds gain
)
def test_gaussian_weights_lose_what_was_published(order, published, left):
    w = torch.randn(256, 128, generator=torch.Generator().manual_seed(0))
    fit = fit_joint(w, None, order, 15, 0.0)
    assert loss(w, fit, None) / w.square().sum() == pytest.approx(published, rel=0.02)
    longer = fit_joint(w, None, order, 30, 0.0)
    assert loss(w, longer, None) <= loss(w, fit, None) <= loss(w, longer, None) * (1 + left)


def test_greedy_is_the_joint_fit_of_one_plane_after_another():
    w, weight, _ = random_fit(1, 16, 24)
    first = fit_joint(w, weight, 1, 9, 0.0)
    second = fit_joint(w - first.values(), weight, 1, 9, 0.0)
    both = fit_greedy(w, weight, 2, 9, 0.0)
    assert torch.allclose(both.values(), first.values() + second.values(), atol=1e-6)


def test_an_important_element_is_fitted_more_closely():
    w, _, _ = random_fit(1, 24, 32)
    weight = torch.ones_like(w)
    weight[3, 5] = 100.0
    plain, marked = fit_joint(w, None, 2, 15, 0.0), fit_joint(w, weight, 2, 15, 0.0)
    error = [(w - fit.values())[3, 5].abs() for fit in (plain, marked)]
    assert error[1] < error[0]


def test_dead_rows_and_columns_stay_finite():
    w, _, _ = random_fit(1, 8, 8)
    w[2], w[:, 3] = 0.0, 0.0
    for order in (1, 2, 3):
        fit = fit_joint(w, None, order, 15, 0.0).halve()
        assert torch.isfinite(fit.values()).all()
        assert fit.values()[2].abs().max() < 1e-3


@pytest.mark.parametrize("order", [1, 2, 3])
def test_columns_rounded_one_by_one_are_those_rounded_at_once(order):
    dice = torch.Generator().manual_seed(order)
    rows, columns = torch.randn(order, 50, generator=dice), torch.randn(order, 16, generator=dice)
    w = torch.randn(50, 16, generator=dice)
    scales = rows[:, :, None] * columns[:, None, :]
    rounding = ColumnRounding(rows, columns)
    backwards = {j: rounding(j, w[:, j].contiguous()) for j in reversed(range(16))}
    signs = nearest_signs(w, scales)
    assert torch.equal(rounding.signs(), signs)
    values = torch.stack([backwards[j] for j in range(16)], dim=1)
    assert torch.allclose(values, (signs * scales).sum(0), atol=1e-6)
