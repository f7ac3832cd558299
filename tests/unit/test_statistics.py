import pytest
import torch

from quant_dllm.errors import RequestError
from quant_dllm.statistics import layer
from quant_dllm.statistics.hessian import damp, inverse_factor
from quant_dllm.statistics.importance import divisor, emphasis_mask, importance
from quant_dllm.statistics.layer import LayerStatistics, output_error, tensor_cores


def test_statistics_of_two_shards_add():
    x = torch.randn(10, 7, 6, generator=torch.Generator().manual_seed(0))
    whole = LayerStatistics.gather([x], 0.01)
    parts = LayerStatistics.gather([x[:4], x[4:]], 0.01)
    assert whole.tokens == parts.tokens == 70
    assert torch.allclose(whole.moment, parts.moment, atol=1e-4)
    flat = x.flatten(0, 1)
    assert torch.allclose(whole.hessian, flat.T @ flat / 70, atol=1e-5)


def test_damping_is_a_share_of_the_mean_diagonal_and_revives_dead_inputs():
    hessian = torch.diag(torch.tensor([4.0, 0.0, 2.0]))
    damped = damp(hessian, 0.01)
    assert torch.allclose(damped.diagonal(), torch.tensor([4.02, 1.02, 2.02]))


def test_inputs_that_are_not_finite_are_refused():
    with pytest.raises(RequestError, match="not finite"):
        inverse_factor(torch.full((3, 3), torch.nan))


def test_the_two_divisors():
    x = torch.randn(90, 8, generator=torch.Generator().manual_seed(0))
    stats = LayerStatistics.gather([x], 0.01)
    inverse = torch.linalg.inv(damp(stats.hessian, 0.01))
    assert torch.allclose(divisor(stats.factor, "inverse"), inverse.diagonal(), rtol=1e-3)
    upper = torch.linalg.cholesky(inverse, upper=True)
    assert torch.allclose(divisor(stats.factor, "factor"), upper.diagonal(), rtol=1e-3)


def test_the_factors_saliency_is_the_loss_of_rounding_one_weight_with_the_left_ones_fixed():
    """w² / (2 U_jj²) is the least loss of zeroing w_j when columns < j cannot move (OBS)."""
    x = torch.randn(200, 5, generator=torch.Generator().manual_seed(0))
    stats = LayerStatistics.gather([x], 0.01)
    h = damp(stats.hessian, 0.01)
    w, j = torch.randn(1, 5, generator=torch.Generator().manual_seed(1)), 2
    right = slice(j + 1, None)
    delta = torch.zeros(5)
    delta[j] = -w[0, j]
    delta[right] = -torch.linalg.solve(h[right, right], h[right, j] * delta[j])
    least = delta @ h @ delta
    z = importance(w, divisor(stats.factor, "factor"))
    assert z[0, j].item() == pytest.approx(least.item(), rel=1e-3)


def test_emphasis_falls_on_what_stands_out():
    z = torch.ones(10, 10)
    z[3, 4] = 50.0
    mask = emphasis_mask(z, 3.0, 2.0)
    assert mask[3, 4] == 3.0 and mask.sum() == 99 + 3
    assert torch.equal(emphasis_mask(torch.ones(4, 4), 3.0, 2.0), torch.ones(4, 4))


def test_output_error_is_the_share_of_wrong_energy():
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    w, q = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(1))
    stats = LayerStatistics.gather([x], 0.01)
    expected = ((x @ (w - q).T) ** 2).sum() / ((x @ w.T) ** 2).sum()
    assert output_error(w, q, stats) == pytest.approx(expected.item(), rel=1e-4)


def test_tensor_cores_are_let_in_for_a_while_only():
    before = torch.get_float32_matmul_precision()
    with pytest.raises(ZeroDivisionError), tensor_cores():
        assert torch.get_float32_matmul_precision() == "high"
        raise ZeroDivisionError
    assert torch.get_float32_matmul_precision() == before


def test_on_a_processor_moments_are_summed_in_full(monkeypatch):
    monkeypatch.setattr(layer, "tensor_cores", lambda: pytest.fail("its products would lose bits"))
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(0)).bfloat16()
    stats = LayerStatistics.gather([x], 0.01)
    assert torch.allclose(stats.moment.double(), x.double().T @ x.double(), rtol=1e-5)
