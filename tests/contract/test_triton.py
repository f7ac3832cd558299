"""The GPU kernels in Triton's interpreter, on a CPU; `benchmarks/gpu.py` checks them on a GPU.

The interpreter checks values, not memory layouts, races or what a compiler makes of it.
"""

import os
import subprocess
import sys
from importlib import util
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from quant_dllm.kernels import triton as kernels
from quant_dllm.kernels.triton_tiles import Tile, candidates, programs
from quant_dllm.kernels.triton_weight import TritonWeight
from quant_dllm.weights.random import random_weight

NAME = programs.__module__.replace("tiles", "programs")
"""Triton reads the source of what it runs: the tests' type checks must not be in it."""
_path = Path(kernels.__file__).with_name("triton_programs.py")
_spec = util.spec_from_file_location(NAME, _path)
sys.modules[NAME] = util.module_from_spec(_spec)
_spec.loader.exec_module(sys.modules[NAME])

if torch.cuda.is_available():
    pytest.skip("a GPU is here: run benchmarks/gpu.py", allow_module_level=True)

SHAPES = {  # out, in, block size, orders
    "even": (64, 256, 128, [2, 2]),
    "odd": (70, 300, 128, [3, 1, 2]),
    "small-blocks": (33, 72, 32, [2, 1, 4]),
}
DTYPES = {torch.float32: 0.006, torch.float16: 0.001, torch.bfloat16: 0.015}
"""Relative RMS that may be missed. The interpreter truncates to bfloat16 where a GPU rounds."""


@pytest.fixture(params=SHAPES)
def weight(request):
    return random_weight(*SHAPES[request.param])


def miss(y, exact):
    return float((y.double() - exact).norm() / exact.norm())


def product(weight, tokens, dtype, tile=None, bias=None):
    """Return y and the exact product of what the kernels were given."""
    x = torch.randn(tokens, weight.in_features).to(dtype)
    packed = TritonWeight.of(weight)
    given = packed.tensors(), bias, packed.facts()
    if tile is None:
        y = kernels.multiply(x, *given)
    else:
        y = (kernels._few if tokens <= 32 else kernels._many)(x, *given, tile)
    exact = x.double() @ weight.dequantize().double().T
    return y, exact if bias is None else exact + bias.double()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tokens", [1, 17, 32, 33, 70])
def test_it_multiplies_by_the_dequantized_weight(weight, tokens, dtype):
    bias = torch.randn(weight.out_features)
    y, exact = product(weight, tokens, dtype, bias=bias)
    assert y.dtype == dtype and y.shape == exact.shape
    assert miss(y, exact) < DTYPES[dtype]


@pytest.mark.parametrize("tokens", [5, 40])
@pytest.mark.parametrize("splits", [1, 2, 3, 8])
def test_splits_add_up(tokens, splits):
    """More of them than planes, too: the shares of the last are nothing."""
    weight, bias = random_weight(*SHAPES["odd"]), torch.randn(70)
    y, exact = product(weight, tokens, torch.float16, Tile(16, 32, splits), bias)
    assert miss(y, exact) < DTYPES[torch.float16]


def test_many_tokens_go_over_the_dequantized_weight(weight, monkeypatch):
    monkeypatch.setattr(kernels, "FUSED", 8)
    y, exact = product(weight, 9, torch.float32, bias=torch.ones(weight.out_features))
    assert miss(y, exact) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_it_dequantizes(weight, dtype):
    packed = TritonWeight.of(weight)
    found = kernels.dequantize(packed.tensors(), packed.facts(), weight.in_features, dtype)
    wanted = weight.dequantize().to(dtype)
    assert torch.allclose(found, wanted, rtol=1e-3 if dtype == torch.float16 else 1e-6, atol=1e-6)


def test_it_gives_the_neutral_layout_back(weight):
    found = TritonWeight.of(weight).restore()
    assert found.layout() == weight.layout()
    for name, tensor in weight.tensors().items():
        assert torch.equal(getattr(found, name), tensor), name


def test_inputs_may_have_any_shape_and_stride():
    packed, x = TritonWeight.of(random_weight(*SHAPES["odd"])), torch.randn(300, 12)

    def multiply(x):
        return kernels.multiply(x, packed.tensors(), None, packed.facts())

    assert torch.equal(multiply(x.T.view(3, 4, 300)).view(12, 70), multiply(x.T.contiguous()))
    assert multiply(x.T[:0]).shape == (0, 70)


def test_the_memory_is_that_of_the_planes():
    weight = random_weight(256, 1024, 128, [2] * 8)
    stored = sum(tensor.nbytes for tensor in weight.tensors().values())
    assert TritonWeight.of(weight).nbytes < 1.01 * stored


@pytest.mark.parametrize("tokens", [16, 32, 64, 512])
def test_there_are_tiles_for_every_shape(tokens):
    for outputs in (64, 4096, 12288, 150000):
        proposed = list(candidates(tokens, outputs, 132))
        assert 0 < len(proposed) <= 12
        assert all(tile.tokens >= 16 and tile.outputs in (64, 128) for tile in proposed)


@pytest.mark.parametrize("capability", [80, 90])
def test_the_programs_compile_for_a_gpu(capability):
    """In a process of its own, since the interpreter is chosen when Triton is imported."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    path = os.pathsep.join(sys.path)
    program = Path(__file__).parents[1] / "native" / "compile_triton.py"
    done = subprocess.run(
        [sys.executable, str(program), str(capability)],
        env=environment | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        name, shared, tensor_cores = line.split()
        assert int(shared) <= 160 << 10, name  # what a program may have on an A100
        assert name == "dequantize" or int(tensor_cores), name


def test_it_says_why_it_refuses():
    weight, x = random_weight(16, 40, 20, [2, 2]), torch.randn(1, 40)
    assert kernels.refuses(x, weight) == "the weight is on cpu"
    assert "blocks of 20 channels" in kernels.refuses_layout(weight)
    assert programs().INTERPRETED
