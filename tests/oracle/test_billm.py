"""BiLLM against its algorithms 1 and 2, part by part and number by number."""

import numpy as np
import pytest
import torch

from quant_dllm.errors import RecipeError
from quant_dllm.quantizers.billm import BiLLM, binarize
from quant_dllm.statistics.hessian import damp
from quant_dllm.statistics.layer import LayerStatistics

BLOCK = 20  # four blocks, the last of 12


def binary(w, part, rounded=True):
    """Return the mean magnitude with each weight's sign, in each row of a part."""
    values = np.zeros_like(w)
    for i in range(len(w)):
        inside = [j for j in range(w.shape[1]) if part[i, j]]
        if inside:
            scale = np.mean([abs(w[i, j]) for j in inside])
            scale = float(np.float16(scale)) if rounded else scale
            for j in inside:
                values[i, j] = -scale if w[i, j] < 0 else scale
    return values


def planes(w, part, order):
    values = np.zeros_like(w)
    for _ in range(order):
        values += binary((w - values) * part, part)
    return values


def salient(w, d, most):
    ranked = sorted(range(w.shape[1]), key=lambda j: -((w[:, j] / d[j]) ** 2).sum())
    tried = []
    for n in range(1, min(most, w.shape[1] - 1) + 1):
        mask = np.zeros(w.shape, dtype=bool)
        mask[:, ranked[:n]] = True
        both = binary(w, mask, False) + binary(w, ~mask, False)
        tried.append((((w - both) ** 2).sum(), n))
    return ranked[: min(tried)[1]]


def split(w, others, steps):
    largest, tried = np.abs(w[others]).max(), []
    for k in range(1, steps + 1):
        p = largest * k / (steps + 1)
        low = others & (np.abs(w) <= p)
        both = binary(w, low, False) + binary(w, others & ~low, False)
        tried.append((((w - both)[others] ** 2).sum(), p))
    return min(tried)[1]


def by_the_algorithm(weight, stats, bits, most=30, steps=9):
    """Return the values, and the number of salient columns of each block."""
    U = torch.linalg.cholesky(torch.linalg.inv(damp(stats.hessian.double(), 0.01)), upper=True)
    U, rest = U.numpy(), weight.double().numpy().copy()
    q, chosen = np.zeros_like(rest), []
    for b, start in enumerate(range(0, rest.shape[1], BLOCK)):
        here = slice(start, min(start + BLOCK, rest.shape[1]))
        w, d = rest[:, here].copy(), U.diagonal()[here]
        columns = salient(w, d, most)
        others = np.ones(w.shape, dtype=bool)
        others[:, columns] = False
        low = others & (np.abs(w) <= split(w, others, steps))
        q[:, here] = (
            planes(w, ~others, bits[b] + 1)
            + planes(w, low, bits[b])
            + planes(w, others & ~low, bits[b])
        )
        rest[:, here.stop :] -= (w - q[:, here]) / d @ U[here, here.stop :]
        chosen.append(len(columns))
    return torch.from_numpy(q), chosen


@pytest.mark.parametrize("options", [{}, {"salient": 3, "splits": 30}])
@pytest.mark.parametrize("bits", [[1, 1, 1, 1], [2, 1, 3, 2]])
def test_it_equals_the_algorithm_taken_by_loops(layer, options, bits):
    weight, stats = layer
    ours = BiLLM(**options).quantize(weight, stats, torch.tensor(bits), BLOCK)
    oracle, chosen = by_the_algorithm(
        weight, stats, bits, options.get("salient", 30), options.get("splits", 9)
    )
    assert torch.allclose(ours.dequantize().double(), oracle, atol=2e-3)  # a step of float16 at 4
    widths = [20, 20, 20, 12]
    signs = sum(24 * (k * w + s) for k, w, s in zip(bits, widths, chosen, strict=True))
    assert ours.code_bits == signs / weight.numel()


def test_the_number_of_salient_columns_is_searched(layer):
    _, chosen = by_the_algorithm(*layer, [1] * 4)
    assert len(set(chosen)) > 1  # else the oracle would compare a constant


def test_bits_are_those_of_the_parts_laid_out():
    """One block by hand: every sign, map and scale that a reader would need."""
    dice = torch.Generator().manual_seed(0)
    weight = torch.randn(10, 16, generator=dice)
    weight[:, 3] *= 10
    stats = LayerStatistics.gather([torch.randn(99, 16, generator=dice)])
    ours = BiLLM(salient=1).quantize(weight, stats, torch.tensor([1]), 16)
    signs = 10 * 15 + 10 * 2
    maps = 10 * 15 + 16
    scales = 16 * 10 * (1 + 1 + 2)
    assert ours.stored_bits == (signs + maps + scales + 8) / 160
    assert ours.code_bits == signs / 160


def test_a_scale_is_the_exact_minimiser(layer):
    w = layer[0][:, :BLOCK]
    part = torch.rand(w.shape, generator=torch.Generator().manual_seed(0)) < 0.6
    q = binarize(w, part, 1)
    error = [((w - q * f) * part).double().square().sum(1) for f in (0.99, 1.0, 1.01)]
    assert (error[0] > error[1]).all() and (error[2] > error[1]).all()
    assert (q[~part] == 0).all()


@pytest.mark.parametrize("width", [1, 2])
def test_a_last_block_may_be_of_one_channel(width):
    dice = torch.Generator().manual_seed(0)
    stats = LayerStatistics.gather([torch.randn(99, 16 + width, generator=dice)])
    weight = torch.randn(6, 16 + width, generator=dice)
    values = BiLLM().quantize(weight, stats, torch.tensor([1, 1]), 16).dequantize()
    assert torch.isfinite(values).all() and (values != 0).all()


@pytest.mark.parametrize("options", [{"salient": 0}, {"splits": 0}])
def test_searches_without_a_candidate_are_refused(options):
    with pytest.raises(RecipeError, match=next(iter(options))):
        BiLLM(**options)
