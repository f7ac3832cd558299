"""GPTAQ against its definition: re-solve the least squares after every column, on the tokens."""

import pytest
import torch

from quant_dllm.errors import RecipeError
from quant_dllm.quantizers.gptaq import GPTAQ, drift_correction
from quant_dllm.quantizers.gptq import GPTQ
from quant_dllm.rounding.grid import Grid
from quant_dllm.statistics.hessian import damp
from tests.conftest import correlated_layer, full_inputs

BLOCK = 20  # four blocks, the last of 12


def tokens_with_damping(x, x_full):
    """Return X and X̃ [in, tokens]: the damping is a token for each channel, the same in both."""
    x, x_full = x.double(), x_full.double()
    hessian = x.T @ x / len(x)
    ridge = (0.01 * hessian.diagonal().mean()).sqrt() * torch.eye(x.shape[1]).double()
    return tuple(torch.cat((y / len(y) ** 0.5, ridge)).T for y in (x, x_full))


def optimal_on_the_full_output(weight, X, X_full, fit_block):
    """Round column after column; then solve for all that are free, from scratch, on the tokens.

    The target starts as W X and grows by w_q (x̃_q − x_q) with each column that is rounded.
    """
    target, current, q = weight @ X, weight.clone(), torch.zeros_like(weight)
    for j in range(weight.shape[1]):
        if j % BLOCK == 0:
            coder = fit_block(current[:, j : j + BLOCK])
        q[:, j] = coder(current[:, j])
        target = target + torch.outer(current[:, j], X_full[j] - X[j])
        left = target - q[:, : j + 1] @ X[: j + 1]
        if j + 1 < weight.shape[1]:
            current[:, j + 1 :] = torch.linalg.lstsq(X[j + 1 :].T, left.T).solution.T
    return q


def drifted_layer():
    """Return a weight, the statistics of its inputs, X and X̃."""
    weight, x, stats = correlated_layer(24, 72)
    return weight, stats, *tokens_with_damping(x, full_inputs(x))


@pytest.fixture
def drifted():
    return drifted_layer()


@pytest.mark.parametrize("bits", [[2, 2, 2, 2], [3, 1, 4, 2]])
def test_it_equals_the_least_squares_after_every_column(drifted, bits):
    weight, stats, X, X_full = drifted
    queue = list(bits)

    def fit_block(block):
        grid = Grid.fit(block.float(), queue.pop(0))
        return lambda w: grid.round(w.float()).double()

    ours = GPTAQ(strength=1.0).quantize(weight, stats, torch.tensor(bits), BLOCK).dequantize()
    oracle = optimal_on_the_full_output(weight.double(), X, X_full, fit_block)
    assert torch.allclose(ours.double(), oracle, atol=1e-4)  # fp32, 72 solves of condition 1e3


def test_the_correction_is_the_drift_through_the_inverse_of_what_is_free(drifted):
    _, stats, _, _ = drifted
    h, drift = damp(stats.hessian.double(), 0.01), stats.drift.double() / stats.tokens
    P = drift_correction(stats.drift / stats.tokens, stats.factor).double()
    for q in range(72):
        row = torch.zeros(72).double()
        row[q + 1 :] = torch.linalg.solve(h[q + 1 :, q + 1 :], drift[q, q + 1 :])
        assert torch.allclose(P[q], row, atol=1e-4)  # fp32, condition 1e3


def test_the_full_output_is_met_better_than_by_gptq_and_best_at_the_derivation(drifted):
    weight, stats, X, X_full = drifted
    bits = torch.full((4,), 3)

    def error(quantizer):
        q = quantizer.quantize(weight, stats, bits, BLOCK).dequantize().double()
        return (weight.double() @ X_full - q @ X).square().sum().item()

    derived, published = error(GPTAQ(strength=1.0)), error(GPTAQ())
    assert derived < published < error(GPTQ())


def test_no_strength_is_gptq(drifted):
    weight, stats, _, _ = drifted
    bits = torch.full((4,), 2)
    ours = GPTAQ(strength=0.0).quantize(weight, stats, bits, BLOCK)
    assert torch.equal(ours.dequantize(), GPTQ().quantize(weight, stats, bits, BLOCK).dequantize())


def test_where_blocks_end_does_not_matter(drifted, monkeypatch):
    weight, stats, _, _ = drifted
    fixed = Grid(torch.full((24,), 0.5), torch.full((24,), 8.0), 4)  # one that no block changes
    monkeypatch.setattr(Grid, "fit", lambda *_: fixed)
    whole, parts = (
        GPTAQ(strength=1.0).quantize(weight, stats, torch.full((n,), 4), size).dequantize()
        for n, size in ((1, 72), (4, 20))
    )
    assert torch.equal(whole, parts)


def test_a_negative_strength_is_refused():
    with pytest.raises(RecipeError, match="strength"):
        GPTAQ(strength=-1.0)
