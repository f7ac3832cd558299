"""The default's target, the full-precision model's output, against least squares on the tokens."""

import pytest
import torch

from quant_dllm.errors import RecipeError
from quant_dllm.quantizers.daq import DataAwareAnyOrderQuantizer
from quant_dllm.statistics.drift import towards_full
from quant_dllm.statistics.layer import Needs
from tests.oracle.test_gptaq import BLOCK, drifted_layer

DEFAULT = {"emphasis": 1.0, "refinements": 2, "scales": 6}


def test_the_target_solves_least_squares_on_the_tokens_of_both_models():
    weight, stats, X, X_full = drifted_layer()
    best = torch.linalg.lstsq(X.T, (weight.double() @ X_full).T).solution.T
    ours = towards_full(weight, stats, 1.0).double()
    assert (weight.double() - best).norm() > 0.05 * best.norm()  # there is something to find
    assert (ours - best).norm() < 1e-4 * best.norm()  # fp32, condition 1e3
    half = towards_full(weight, stats, 0.5).double()
    assert torch.allclose(half, (weight.double() + ours) / 2, atol=1e-6)


@pytest.mark.parametrize("bits", [[2, 2, 2, 2], [3, 1, 4, 2]])
def test_the_full_output_is_met_the_better_the_more_of_the_drift_is_made_up_for(bits):
    weight, stats, X, X_full = drifted_layer()

    def error(drift):
        quantizer = DataAwareAnyOrderQuantizer(drift=drift, **DEFAULT)
        q = quantizer.quantize(weight, stats, torch.tensor(bits), BLOCK).dequantize().double()
        return (weight.double() @ X_full - q @ X).square().sum().item()

    assert error(1.0) < error(0.5) < error(0.0)


def test_no_more_is_gathered_than_is_read():
    assert DataAwareAnyOrderQuantizer().needs == Needs.HESSIAN
    assert DataAwareAnyOrderQuantizer(drift=0.5).needs == Needs.HESSIAN | Needs.DRIFT


def test_a_negative_drift_is_refused():
    with pytest.raises(RecipeError, match="drift"):
        DataAwareAnyOrderQuantizer(drift=-0.1)
