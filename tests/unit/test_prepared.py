"""Layers whose weight is in a kernel's layout."""

import copy
import os
import subprocess
import sys

import pytest
import torch

from quant_dllm.errors import RequestError
from quant_dllm.kernels import dispatch, native, reference
from quant_dllm.linear import QuantLinear
from quant_dllm.weights.compact import CompactWeight
from quant_dllm.weights.random import random_weight

pytestmark = pytest.mark.skipif(native.missing() is not None, reason=str(native.missing()))


@pytest.fixture(params=["binary", "compact"])
def weight(request):
    made = random_weight(48, 200, 64, [2, 1, 3, 2])
    if request.param == "binary":
        return made
    return CompactWeight.of([made.block(place) for place in made.places()], 64, 6)


@pytest.fixture
def layer(weight, kernels):
    made = QuantLinear.of(weight, torch.randn(48))
    made.prepare(torch.empty(0, 200))
    assert made.prepared is not None
    return made


def close(y, x, weight, bias):
    exact = x.double() @ weight.dequantize().double().T + bias.detach().double()
    return float((y.detach().double() - exact).norm() / exact.norm()) < 0.01


def test_the_first_call_prepares(weight, kernels):
    layer, x = QuantLinear.of(weight, torch.randn(48)), torch.randn(5, 200)
    assert layer.prepared is None
    assert close(layer(x), x, weight, layer.bias)
    assert layer.prepared is not None


def test_a_weight_is_in_memory_once(layer, weight):
    assert all(getattr(layer, name) is None for name in weight.names)
    assert layer.in_features == 200
    neutral = sum(tensor.nbytes for tensor in weight.tensors().values())
    assert layer.weight_bytes < 1.5 * neutral + 4096  # tiles of 32 rows, 32-bit column scales


def same(found, weight):
    return all(torch.equal(found[name], tensor) for name, tensor in weight.tensors().items())


def test_saving_copying_moving_and_loading_see_the_tensors(layer, weight):
    assert same(layer.state_dict(), weight)
    assert same(copy.deepcopy(layer).state_dict(), weight)
    other = QuantLinear.of(weight.scale_rows(torch.full((48,), 2.0)))
    other.prepare(torch.empty(0, 200))
    other.load_state_dict({n: t for n, t in layer.state_dict().items() if n != "bias"})
    assert same(other.state_dict(), weight)
    assert same(layer.to(torch.bfloat16).state_dict(), weight)
    assert "200, 48" in repr(layer)


def test_gradients_of_the_input_come_from_the_reference(layer, weight):
    x = torch.randn(4, 200, requires_grad=True)
    layer(x).sum().backward()
    wanted = weight.dequantize().sum(0).expand(4, 200)
    assert torch.allclose(x.grad, wanted, atol=1e-5)


def test_the_environment_names_a_kernel(weight, monkeypatch):
    x = torch.randn(4, 200)
    monkeypatch.setenv("QUANT_DLLM_KERNEL", "reference")
    assert torch.equal(dispatch.linear(x, weight), reference.linear(x, weight))
    monkeypatch.setenv("QUANT_DLLM_KERNEL", "native-precise")
    exact = x.double() @ weight.dequantize().double().T
    assert (dispatch.linear(x, weight) - exact).norm() / exact.norm() < 0.003
    monkeypatch.setenv("QUANT_DLLM_KERNEL", "nativ")
    with pytest.raises(RequestError, match="Did you mean 'native'"):
        dispatch.linear(x, weight)
    monkeypatch.setenv("QUANT_DLLM_KERNEL", "native")
    with pytest.raises(RequestError, match=r"which refuses: .*float64"):
        dispatch.linear(x.double(), weight)


def test_the_environment_names_a_unit(monkeypatch):
    native.unit.cache_clear()
    monkeypatch.setenv("QUANT_DLLM_CPU", "generic")
    assert list(native.units())[native.unit()] == "generic"
    native.unit.cache_clear()
    monkeypatch.setenv("QUANT_DLLM_CPU", "avx3")
    with pytest.raises(RequestError, match="QUANT_DLLM_CPU is 'avx3'"):
        native.unit()


def test_a_compiled_model_calls_the_operator(tmp_path):
    """In a process of its own: the tests' type checks cannot be traced."""
    environment = {k: v for k, v in os.environ.items() if k != "QUANT_DLLM_KERNEL"}
    program = tmp_path / "compiled.py"
    program.write_text(COMPILED)
    done = subprocess.run(
        [sys.executable, str(program)],
        env=environment | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["quant_dllm.linear.default"]


COMPILED = """
import torch
from quant_dllm.linear import QuantLinear
from quant_dllm.weights.random import random_weight

x = torch.ones(4, 200)
layer = QuantLinear.of(random_weight(48, 200, 64, [2, 1, 3, 2]), torch.randn(48))
layer.prepare(x)

def backend(graph, inputs):
    print(*(node.target for node in graph.graph.nodes if node.op == "call_function"))
    return graph.forward

assert torch.equal(torch.compile(layer, backend=backend, fullgraph=True)(x), layer(x))
"""
