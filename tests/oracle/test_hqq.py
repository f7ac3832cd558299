"""HQQ against its definition, one group and one number at a time."""

import math

import numpy as np
import pytest
import torch

from quant_dllm.errors import RecipeError
from quant_dllm.quantizers.hqq import HalfQuadraticQuantizer, shrink
from quant_dllm.statistics.layer import NO_STATISTICS

BLOCK = 21  # four blocks, the last of 9; a mean of an even number of |errors| has flat places


def half(x):
    return float(np.float16(x))


def by_loops(group, bits, rounds, norm, beta, kappa):
    """Return the values of one row of one group."""
    top = 2**bits - 1
    s = half((max(group) - min(group)) / top)
    z = -min(group) / s
    best, least = z, math.inf
    for _ in range(rounds + 1):
        q = [min(max(round(w / s + z), 0), top) for w in group]
        e = [w - s * (c - z) for w, c in zip(group, q, strict=True)]
        if (now := sum(map(abs, e)) / len(e)) < least:
            best, least = z, now
        cut = beta ** (-1 / (2 - norm))
        small = [
            math.copysign(abs(x) - abs(x) ** (norm - 1) / beta, x) if abs(x) > cut else 0 for x in e
        ]
        terms = [c - (w - x) / s for w, c, x in zip(group, q, small, strict=True)]
        z, beta = sum(terms) / len(terms), beta * kappa
    best = half(best)
    return [s * (min(max(round(w / s + best), 0), top) - best) for w in group]


@pytest.mark.parametrize("options", [{}, {"norm": 0.5, "beta": 1.0, "kappa": 1.1, "rounds": 5}])
def test_it_equals_the_steps_taken_by_loops(layer, options):
    weight = layer[0]
    bits = [2, 3, 1, 4]
    quantizer = HalfQuadraticQuantizer(**options)
    ours = quantizer.quantize(weight, NO_STATISTICS, torch.tensor(bits), BLOCK).dequantize()
    how = quantizer.rounds, quantizer.norm, quantizer.beta, quantizer.kappa
    for i, row in enumerate(weight.double().tolist()):
        for b, start in enumerate(range(0, 72, BLOCK)):
            expected = by_loops(row[start : start + BLOCK], bits[b], *how)
            found = ours[i, start : start + BLOCK]
            # one step of a float16 zero point below four, where fp32 and fp64 round apart
            assert torch.allclose(found, torch.tensor(expected), atol=2e-3)


def test_the_zero_point_is_the_exact_minimiser_of_its_step(layer):
    w = layer[0][:, :BLOCK].double()
    s, z = torch.full((24, 1), 0.7).double(), torch.full((24, 1), 1.3).double()
    q = (w / s + z).round().clamp(0, 3)
    e = shrink(w - s * (q - z), 10.0, 0.7)
    z = (q - (w - e) / s).mean(dim=1, keepdim=True)

    def objective(z):
        return (w - e - s * (q - z)).square().sum(dim=1)

    for step in (1e-3, -1e-3):
        assert (objective(z + step) > objective(z)).all()


def test_shrinking_forgets_errors_below_the_threshold_and_lowers_the_others():
    x = torch.linspace(-2, 2, 401).double()
    e = shrink(x, beta=10.0, norm=0.7)
    threshold = 10.0 ** (-1 / 1.3)
    assert torch.equal(e == 0, x.abs() <= threshold)
    assert torch.equal(e, -e.flip(0))
    at_one = (x - 1.0).abs().argmin()
    assert e[at_one] == pytest.approx(1 - 0.1)


def test_fitting_lowers_the_mean_absolute_error_of_minimum_to_maximum(layer):
    weight, bits = layer[0] ** 3, torch.full((4,), 2)  # heavy tails
    errors = [
        (HalfQuadraticQuantizer(rounds=rounds).quantize(
            weight, NO_STATISTICS, bits, BLOCK).dequantize() - weight).abs().mean()
        for rounds in (0, 1, 5, 20)
    ]  # fmt: skip
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.9 * errors[0]


def test_levels_reach_weights_that_lie_far_from_zero():
    weight = 5.0 + 0.1 * torch.rand(6, 60, generator=torch.Generator().manual_seed(0))
    weight[0] = 5.0  # constant
    ours = HalfQuadraticQuantizer().quantize(weight, NO_STATISTICS, torch.full((3,), 3), BLOCK)
    assert (ours.dequantize() - weight).abs().max() < 0.1 / 7  # a step; the half is fp16's


@pytest.mark.parametrize("options", [{"norm": 0.0}, {"beta": 0.0}, {"kappa": 0.9}, {"rounds": -1}])
def test_numbers_without_meaning_are_refused(options):
    with pytest.raises(RecipeError, match=next(iter(options))):
        HalfQuadraticQuantizer(**options)
