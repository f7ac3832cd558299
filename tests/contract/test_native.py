"""Every unit of the native kernel, over shapes, orders, dtypes and token counts, against float64.

Units that this processor lacks run emulated, where SIMDe is installed.
"""

import pytest
import torch

from quant_dllm.errors import CheckpointError
from quant_dllm.kernels import native
from quant_dllm.kernels.compile import CompileError
from quant_dllm.kernels.operator import OPERATOR
from quant_dllm.weights.random import random_weight
from tests.native import emulated

TOKENS = (1, 2, 3, 7, 8, 15, 16, 17, 23, 24, 31, 32, 33, 47, 48, 64, 127, 128, 513)
SHAPES = {  # out, in, block size, orders: short last blocks, widths that fill no tile or byte
    "square": (256, 512, 128, [2, 1, 3, 2]),
    "odd": (97, 300, 128, [4, 2, 1]),
    "narrow": (33, 72, 20, [2, 3, 1, 2]),
    "wide-blocks": (64, 700, 256, [2, 1, 2]),
    "one-row": (1, 7, 128, [2]),
    "high": (40, 136, 64, [8, 5, 2]),
    "mixed": (520, 160, 32, [1, 4, 2, 3, 1]),  # chunks of two tiles, the last one with one
    "thin": (64, 640, 128, [1, 1, 2, 1, 1]),
}
UNITS = ("generic", "avx2", "avx512", "amx", "neon")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
FAST, PRECISE = 0.01, 0.003  # relative RMS that a layer may miss float64 by


@pytest.fixture(scope="session")
def emulated_library(tmp_path_factory):
    try:
        path = emulated.build(tmp_path_factory.mktemp("native") / "emulated.so")
    except CompileError as error:
        pytest.skip(f"units cannot be emulated: {error}")
    return native.open_library(path)


@pytest.fixture(params=UNITS)
def unit(request, monkeypatch):
    """Use one unit, the processor's own or emulated; name it."""
    if reason := native.missing():
        pytest.skip(f"no native library: {reason}")
    if native.units().get(request.param, "it") is not None:
        library = request.getfixturevalue("emulated_library")
        monkeypatch.setattr(native, "library", lambda: library)
    if native.units().get(request.param, "it") is not None:
        pytest.skip(f"this processor lacks {native.units().get(request.param, request.param)}")
    index = list(native.units()).index(request.param)
    monkeypatch.setattr(native, "unit", lambda: index)
    return request.param


@pytest.fixture(params=SHAPES)
def weight(request):
    return random_weight(*SHAPES[request.param])


def inputs(tokens, weight, dtype=torch.float32):
    """Correlated enough to be real: two channels tower over the others."""
    x = torch.randn(tokens, weight.in_features, generator=torch.Generator().manual_seed(tokens))
    x[:, 3] *= 30
    x[:, weight.in_features // 2] *= 100
    return x.to(dtype)


def miss(y, x, weight, bias=None):
    exact = x.double() @ weight.dequantize().double().T
    exact = exact if bias is None else exact + bias.double()
    return float((y.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_it_multiplies_by_the_dequantized_weight(unit, weight, dtype):
    packed = native.prepare(weight)
    bias = torch.randn(weight.out_features)
    for tokens in TOKENS:
        x = inputs(tokens, weight, dtype)
        y = packed.linear(x, bias)
        assert y.dtype == dtype and y.shape == (tokens, weight.out_features)
        assert miss(y, x, weight, bias.to(dtype)) <= FAST, tokens


def test_the_precise_mode_misses_less(unit, weight):
    packed = native.prepare(weight, precise=True)
    for tokens in TOKENS:
        for dtype in DTYPES:
            x = inputs(tokens, weight, dtype)
            assert miss(packed.linear(x), x, weight) <= PRECISE, (tokens, dtype)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_inputs_may_be_of_any_distribution(unit, order):
    weight = random_weight(160, 512, 128, [order] * 4)
    packed, dice = native.prepare(weight), torch.Generator().manual_seed(order)
    for tokens in (40, 127, 300):
        normal = torch.randn(tokens, 512, generator=dice)
        heavy = normal / torch.rand(tokens, 512, generator=dice).sqrt()
        channels = normal * torch.randn(512, generator=dice).exp()
        massive = normal.clone()
        massive[:: tokens // 2, 7] = 3000  # a few tokens, one channel
        for name, x in {"heavy": heavy, "channels": channels, "massive": massive}.items():
            assert miss(packed.linear(x), x, weight) <= FAST, (tokens, name)


def test_a_plane_may_count_in_few_channels(unit):
    weight = random_weight(*SHAPES["square"])
    weight.column_scales[128:256].div_(64)  # the second plane of the first block
    weight.column_scales[128 + 5] *= 512
    packed = native.prepare(weight)
    for tokens in (1, 16, 64, 300):
        x = inputs(tokens, weight)
        assert miss(packed.linear(x), x, weight) <= FAST, tokens


@pytest.mark.parametrize("rows, columns", [(-9, 9), (-8, -8), (9, -4), (8, 8)], ids=str)
def test_scales_may_be_small_and_large(unit, rows, columns):
    weight = random_weight(70, 300, 128, [2, 1, 3])
    weight.row_scales.mul_(2.0**rows)
    weight.row_scales[:35].div_(64)
    weight.column_scales.mul_(2.0**columns)
    packed = native.prepare(weight)
    for tokens in (1, 16, 64):
        x = inputs(tokens, weight)
        assert miss(packed.linear(x), x, weight) <= FAST, tokens


@pytest.mark.parametrize("tokens", [1, 17, 128, 513])
def test_two_threads_do_what_one_does(unit, tokens):
    weight = random_weight(2048, 512, 128, [2, 2, 1, 3])  # enough rows to share out
    packed, x = native.prepare(weight), inputs(tokens, weight)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        packed = native.prepare(weight)
        y = packed.linear(x)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(native.prepare(weight).packed, packed.packed)
    assert miss(y, x, weight) <= FAST
    assert miss(packed.linear(x), x, weight) <= FAST


def test_it_gives_the_neutral_layout_back(unit, weight):
    odd = torch.tensor([0x7C00, 0xFC00, 0x7E01, 0x8000, 0x0001, 0x83FF], dtype=torch.uint16)
    weight.row_scales.view(-1)[:2] = odd.view(torch.float16)[:2]
    weight.column_scales[:6] = odd.view(torch.float16)  # infinities, NaN, -0, subnormals
    found = native.prepare(weight).restore()
    assert found.layout() == weight.layout()
    for name, tensor in weight.tensors().items():
        assert torch.equal(getattr(found, name).view(torch.uint8), tensor.view(torch.uint8)), name


def test_inputs_may_have_any_shape_and_stride(unit):
    weight = random_weight(*SHAPES["odd"])
    packed = native.prepare(weight)
    x = inputs(12, weight).view(3, 4, 300)
    assert torch.equal(packed.linear(x), packed.linear(x.view(12, 300)).view(3, 4, 97))
    columns = x.view(12, 300).T.contiguous().T
    assert torch.equal(packed.linear(columns), packed.linear(x.view(12, 300)))
    assert packed.linear(x[:0]).shape == (0, 4, 97)


@pytest.mark.parametrize("tokens", [9, 70])
def test_what_is_not_finite_stays_in_its_token(unit, tokens):
    weight = random_weight(*SHAPES["odd"])
    x = inputs(tokens, weight)
    x[2, 5], x[6, 200] = torch.nan, torch.inf
    y = native.prepare(weight).linear(x)
    assert y.isfinite().all(1).tolist() == [m not in (2, 6) for m in range(tokens)]
    assert not y[[2, 6]].isfinite().any()


@pytest.mark.parametrize("tokens", [5, 70])
def test_inputs_of_any_size(unit, tokens):
    weight = random_weight(*SHAPES["square"])
    packed = native.prepare(weight)
    for size in (0.0, 1e-25, 1e25):
        x = inputs(tokens, weight) * size
        y = packed.linear(x)
        assert torch.equal(y, torch.zeros_like(y)) if size == 0 else miss(y, x, weight) <= FAST


def test_memory_does_not_grow_with_the_tokens(unit):
    packed = native.prepare(random_weight(*SHAPES["square"])).packed
    wanted = [
        native.library().qd_workspace(packed.data_ptr(), native.unit(), m, 2)
        for m in (1, 512, 4096, 1 << 20)
    ]
    assert wanted[0] < wanted[1] == wanted[2] == wanted[3]


def test_the_operator_keeps_its_promises(unit):
    weight = random_weight(*SHAPES["odd"])
    packed = native.prepare(weight)
    facts = [packed.out_features, packed.unit, 0]
    arguments = (inputs(4, weight), [packed.packed], torch.randn(97), facts)
    torch.library.opcheck(OPERATOR, arguments, test_utils=("test_schema", "test_faketensor"))


def test_damaged_tensors_are_told_of(unit):
    weight = random_weight(*SHAPES["odd"])
    weight.orders[0] = 2
    with pytest.raises(CheckpointError, match=r"planes .* its orders want"):
        native.prepare(weight)
