"""The C kernel of grouped codes: against the definition, and when it is not taken."""

import pytest
import torch

from quant_dllm.embedding import QuantEmbedding
from quant_dllm.kernels import dispatch, grouped, native
from quant_dllm.kernels.explain import explain
from quant_dllm.quantizers.outside import Grouped

pytestmark = pytest.mark.skipif(native.missing() is not None, reason=str(native.missing()))
KINDS = {"8": {}, "4": {"bits": 4}, "finer": {"bits": 4, "finer": 0.1}}


def weight(kind, rows=200, inputs=300, size=128):
    dice = torch.Generator().manual_seed(0)
    finer = torch.rand(rows, generator=dice) < 0.1 if kind == "finer" else None
    return Grouped(block_size=size, **KINDS[kind]).quantize(
        torch.randn(rows, inputs, generator=dice), finer
    )


@pytest.fixture(autouse=True)
def free(monkeypatch):
    monkeypatch.delenv("QUANT_DLLM_KERNEL", raising=False)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokens", [1, 7, 8, 33])
@pytest.mark.parametrize("inputs", [64, 300, 301])
@pytest.mark.parametrize("threads", [1, 2])
def test_it_is_the_definition(kind, tokens, inputs, threads):
    w = weight(kind, inputs=inputs)
    x = torch.randn(tokens, inputs, generator=torch.Generator().manual_seed(1))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        ours = grouped.linear(x, w)
    finally:
        torch.set_num_threads(before)
    exact = x.double() @ w.dequantize().double().T
    assert (ours - exact).norm() < 1e-5 * exact.norm()  # float32 sums


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_output_has_the_type_of_the_input(dtype):
    w = weight("finer")
    x = torch.randn(2, 3, 300, generator=torch.Generator().manual_seed(1)).to(dtype)
    ours = QuantEmbedding.of(w).scores(x)
    exact = x.double() @ w.dequantize().double().T
    assert ours.dtype == dtype and ours.shape == (2, 3, 200)
    assert (ours - exact).norm() < (1e-5 if dtype == torch.float32 else 5e-3) * exact.norm()


def test_it_is_chosen_and_said_to_be(monkeypatch):
    w, x = weight("finer"), torch.randn(1, 300)
    assert dispatch.choose(x, w) is grouped
    assert explain(x, w).kernel.startswith("grouped (")
    monkeypatch.setenv("QUANT_DLLM_KERNEL", "native")  # is for the blocks
    assert dispatch.choose(x, w) is grouped
    monkeypatch.setenv("QUANT_DLLM_KERNEL", "reference")
    assert explain(x, w).kernel == "reference"


def test_what_it_does_not_take_goes_to_the_definition():
    w, x = weight("8"), torch.randn(1, 300)
    assert "groups of 10" in grouped.refuses(x, weight("4", size=10))
    assert "gradients" in grouped.refuses(x.requires_grad_(), w)
    assert "float64" in grouped.refuses(x.detach().double(), w)
    assert dispatch.choose(x, weight("4", size=10)).__name__.endswith("reference")
