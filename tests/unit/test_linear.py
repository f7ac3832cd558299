import logging

import pytest
import torch

from quant_dllm.kernels import reference
from quant_dllm.linear import QuantLinear
from quant_dllm.quantizers.daq import DataAwareAnyOrderQuantizer
from quant_dllm.quantizers.gptq import GPTQ


@pytest.fixture(params=[DataAwareAnyOrderQuantizer, GPTQ], ids=["binary", "uniform"])
def packed(request, layer):
    return request.param().quantize(*layer, torch.tensor([2, 1, 3, 2]), 20)


def test_it_multiplies_by_the_dequantized_weight(packed):
    bias = torch.randn(24)
    x = torch.randn(3, 5, 72)
    y = QuantLinear.of(packed, bias)(x)
    assert torch.allclose(y, x @ packed.dequantize().T + bias, atol=1e-5)


def test_tiles_make_no_difference(packed, monkeypatch):
    x = torch.randn(4, 72)
    whole = reference.linear(x, packed)
    monkeypatch.setattr(reference, "TILE", 72 * 5)
    assert torch.allclose(reference.linear(x, packed), whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_it_answers_in_the_dtype_it_is_asked_in(packed, dtype):
    layer = QuantLinear.of(packed)
    x = torch.randn(4, 72).to(dtype)
    exact = x.float() @ packed.dequantize().T
    y = layer(x)
    assert y.dtype == dtype
    assert (y.float() - exact).norm() / exact.norm() < 0.01  # bfloat16 weights: 2⁻⁹ each


def test_what_is_stored_stays_as_it_is_when_the_model_is_cast(packed):
    layer = QuantLinear.of(packed, torch.randn(24))
    before = {name: tensor.clone() for name, tensor in packed.tensors().items()}
    layer.to(torch.bfloat16).half().double()
    assert layer.bias.dtype == torch.float64
    for name, tensor in before.items():
        now = getattr(layer, name)
        assert now.dtype == tensor.dtype and torch.equal(now, tensor)


def test_its_tensors_are_frozen_parameters_under_their_own_names(packed):
    layer = QuantLinear.of(packed)
    assert set(layer.state_dict()) == set(packed.names)
    assert not any(p.requires_grad for p in layer.parameters())
    assert "72, 24" in repr(layer)


def test_dispatch_says_why_a_backend_refused(packed, caplog, monkeypatch, kernels):
    from quant_dllm.kernels import dispatch

    class Refusing:
        @staticmethod
        def refuses(x, weight):
            return "it is shy"

    found = {"shy": Refusing, "reference": reference}
    monkeypatch.setattr(dispatch, "BACKENDS", ("shy", "reference"))
    monkeypatch.setattr(dispatch, "import_module", lambda name: found[name.rpartition(".")[2]])
    with caplog.at_level(logging.DEBUG, "quant_dllm"):
        dispatch.linear(torch.randn(1, 72), packed)
    assert "kernel shy refused: it is shy" in caplog.text
