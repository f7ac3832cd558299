"""Second-order steps against brute force on the whole quadratic."""

import copy
from itertools import pairwise

import pytest
import torch

from quant_dllm.quantizers.daq import DataAwareAnyOrderQuantizer
from quant_dllm.rounding import second_order
from quant_dllm.rounding.second_order import (
    Matrix,
    choose_signs,
    refine,
    refit_columns,
    refit_rows,
)
from quant_dllm.statistics.hessian import damp

ORDERS = [2, 1, 3, 2]


@pytest.fixture
def matrix(layer):
    """A swept matrix of four blocks of different orders, the last one short."""
    weight, stats = layer
    quantizer = DataAwareAnyOrderQuantizer(emphasis=1.0)
    packed = quantizer.quantize(weight, stats, torch.tensor(ORDERS), 20)
    planes = [packed.block(place) for place in packed.places()]
    return Matrix.of(weight, damp(stats.hessian, 0.01), planes)


def design(m, row):
    """Return the matrix whose columns multiply the row scales of one row: [in, planes]."""
    columns = []
    for block in m.blocks:
        for k in range(len(block.rows)):
            v = torch.zeros(m.weight.shape[1], dtype=torch.float64)
            v[block.channels] = (block.signs[k, row] * block.columns[k]).double()
            columns.append(v)
    return torch.stack(columns, 1)


def test_it_begins_with_the_swept_values(matrix, layer):
    weight, stats = layer
    packed = DataAwareAnyOrderQuantizer(emphasis=1.0).quantize(
        weight, stats, torch.tensor(ORDERS), 20
    )
    assert torch.allclose(matrix.values(), packed.dequantize(), atol=1e-6)


def test_row_scales_solve_the_weighted_least_squares_of_each_row(matrix):
    refit_rows(matrix)
    root = torch.linalg.cholesky(matrix.hessian.double()).T  # J of a row = |root (w − V a)|²
    for row in (0, 7, 23):
        V = design(matrix, row)
        a = torch.linalg.lstsq(root @ V, root @ matrix.weight[row].double()).solution
        ours = torch.cat([block.rows[:, row] for block in matrix.blocks]).double()
        assert torch.allclose(ours, a, rtol=1e-2, atol=1e-3)  # fp32, ridge 1e-6


def test_column_scales_are_the_minimiser(matrix):
    refit_columns(matrix, steps=400)
    least = matrix.loss()
    for block in matrix.blocks:
        for k in range(len(block.columns)):
            for j in (0, 5, 11):
                for step in (1e-2, -1e-2):
                    block.columns[k, j] += step
                    assert matrix.loss() > least * (1 - 1e-6)
                    block.columns[k, j] -= step


def test_panels_of_the_lower_half_are_the_whole_matrix(matrix, monkeypatch):
    whole = matrix.loss()
    monkeypatch.setattr(second_order, "PANEL", 10**6)
    once = copy.deepcopy(matrix)
    refit_columns(once)
    monkeypatch.setattr(second_order, "PANEL", 17)
    refit_columns(matrix)
    assert matrix.loss() < whole
    for block, wanted in zip(matrix.blocks, once.blocks, strict=True):
        assert torch.allclose(block.columns, wanted.columns, rtol=1e-3, atol=1e-5)  # fp32


def test_few_steps_of_conjugate_gradients_lower_the_loss_already(matrix):
    before = matrix.loss()
    refit_columns(matrix, steps=5)
    middle = matrix.loss()
    refit_columns(matrix, steps=40)
    assert matrix.loss() <= middle < before


def test_signs_are_a_fixed_point_of_coordinate_descent(matrix):
    """After enough passes no single column can be improved by any of its sign patterns."""
    losses = [matrix.loss()]
    for _ in range(30):
        choose_signs(matrix)
        losses.append(matrix.loss())
        assert losses[-1] <= losses[-2] * (1 + 1e-6)
    block = matrix.blocks[2]
    for j in (0, 7, 19):
        for k in range(3):
            for row in (1, 12):
                block.signs[k, row, j] *= -1
                assert matrix.loss() >= losses[-1] * (1 - 1e-6)
                block.signs[k, row, j] *= -1


def test_one_pass_equals_a_pass_that_solves_each_column_by_hand(matrix):
    q, w, h = matrix.values().double(), matrix.weight.double(), matrix.hessian.double()
    for block in matrix.blocks:
        for j in range(block.channels.stop - block.channels.start):
            at = block.channels.start + j
            others = w - q
            others[:, at] = 0.0
            target = w[:, at] + others @ h[:, at] / h[at, at]
            scales = (block.rows * block.columns[:, j, None]).double()
            patterns = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * len(scales))
            levels = patterns.double().reshape(-1, len(scales)) @ scales
            best = (levels - target).abs().argmin(0)
            q[:, at] = levels.gather(0, best[None])[0]
    choose_signs(matrix)
    assert torch.allclose(matrix.values().double(), q, atol=1e-4)


def test_every_round_lowers_the_loss_and_all_of_them_much(matrix):
    losses = refine(matrix, rounds=6, tolerance=0.0)
    assert all(b <= a * (1 + 1e-5) for a, b in pairwise(losses))
    assert losses[-1] < 0.9 * losses[0]


def test_it_stops_when_little_is_gained(matrix):
    assert len(refine(matrix, rounds=50, tolerance=0.05)) < 20


def test_what_is_left_is_what_float16_stores(matrix):
    losses = refine(matrix, rounds=2)
    assert losses[-1] <= losses[-2] * 1.01  # float16 costs next to nothing
    for block in matrix.blocks:
        for scales in (block.rows, block.columns):
            assert torch.equal(scales, scales.half().float())


def test_the_quantizer_refines_what_it_swept(layer):
    weight, stats = layer
    bits = torch.tensor(ORDERS)

    def loss(refinements):
        quantizer = DataAwareAnyOrderQuantizer(emphasis=1.0, refinements=refinements)
        rest = weight - quantizer.quantize(weight, stats, bits, 20).dequantize()
        return ((rest @ damp(stats.hessian, stats.damping)) * rest).sum().item()

    swept, once, often = loss(0), loss(1), loss(6)
    assert often < once < 0.95 * swept
