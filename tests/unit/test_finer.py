"""Four bits a code, eight in some rows: values by hand, rows looked up, and which rows they are."""

import pytest
import torch

import quant_dllm
from quant_dllm.calibration.corpus import token_windows
from quant_dllm.embedding import QuantEmbedding
from quant_dllm.errors import RecipeError
from quant_dllm.linear import QuantLinear
from quant_dllm.models.bundled import bundled_text
from quant_dllm.models.load import load
from quant_dllm.quantizers.outside import Grouped
from quant_dllm.rounding.sweep import spans
from quant_dllm.weights.finer import FinerWeight
from quant_dllm.weights.fits import misfit
from tests.conftest import correlated_layer

ROWS, INPUTS, SIZE = 50, 37, 16


@pytest.fixture
def weight():
    return torch.randn(ROWS, INPUTS, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def finer():
    return torch.zeros(ROWS, dtype=torch.bool).index_fill_(0, torch.tensor([0, 7, 8, 49]), True)


def test_values_by_hand(finer):
    dice = torch.Generator().manual_seed(0)
    codes = torch.randint(16, (ROWS, INPUTS), generator=dice)
    codes[finer] = torch.randint(256, (4, INPUTS), generator=dice)
    scales = torch.randn(ROWS, 3, generator=dice).half()
    packed = FinerWeight.split(codes.to(torch.uint8), scales, finer, SIZE)
    by_hand = torch.tensor([
        [float(scales[i, j // SIZE])
         * ((int(codes[i, j]) - 128) / 16 if finer[i] else int(codes[i, j]) - 8)
         for j in range(INPUTS)]
        for i in range(ROWS)
    ])  # fmt: skip
    assert torch.allclose(packed.dequantize(), by_hand, rtol=1e-6)
    again = FinerWeight(**packed.tensors(), **packed.layout())
    for rows in (slice(7, 9), slice(1, 7), slice(8, None), slice(49, 50)):
        assert torch.equal(again.dequantize(rows), packed.dequantize()[rows])
    ids = torch.tensor([49, 3, 7, 7, 0, 48])
    assert torch.equal(again.dequantize(ids), packed.dequantize()[ids])
    assert packed.marks.shape == (7,) and packed.below.shape == (4, 19)
    assert packed.code_bits == pytest.approx(4 + 4 * 4 / ROWS)
    assert torch.equal(packed.scale_rows(torch.full((ROWS,), 2.0)).dequantize(),
                       2 * packed.dequantize())  # fmt: skip


def test_finer_rows_lose_what_eight_bits_lose_and_others_what_four_do(weight, finer):
    mixed = Grouped(bits=4, block_size=SIZE, finer=0.08).quantize(weight, finer)
    four, eight = (Grouped(bits=b, block_size=SIZE).quantize(weight).dequantize() for b in (4, 8))
    assert torch.equal(mixed.dequantize()[~finer], four[~finer])
    lost = [(w - weight)[finer].square().sum() for w in (mixed.dequantize(), eight, four)]
    assert lost[0] < 1.1 * lost[1] < lost[2] / 50
    stored = sum(t.nbytes for t in mixed.tensors().values())
    assert stored == Grouped(bits=4, block_size=SIZE, finer=0.08).stored_bytes(ROWS, INPUTS)
    x = torch.randn(3, INPUTS)
    assert torch.allclose(QuantLinear.of(mixed)(x), x @ mixed.dequantize().T, atol=1e-5)
    ids = torch.tensor([[3, 49], [0, 1]])
    assert torch.equal(QuantEmbedding.of(mixed)(ids), mixed.dequantize()[ids])


def by_hand(weight, stats, bits, size):
    """GPTQ with the exact conditional optimum after each column, float64; scales as they stand."""
    H = stats.hessian.double()
    H = H + stats.damping * H.diagonal().mean() * torch.eye(len(H), dtype=torch.float64)
    w, half = weight.double().clone(), 2 ** (bits - 1)
    q = torch.zeros_like(w)
    for channels in spans(w.shape[1], size):
        fitted = Grouped(bits=bits, block_size=size).quantize(w[:, channels].float())
        scale = fitted.scales.double()[:, 0]
        for j in range(channels.start, channels.stop):
            nearest = (w[:, j] / scale).round().clamp(-half, half - 1)
            q[:, j] = nearest * scale
            rest = slice(j + 1, None)
            move = torch.linalg.solve(H[rest, rest], H[rest, j]) if j + 1 < len(H) else H[rest, j]
            w[:, rest] += (w[:, j] - q[:, j])[:, None] * move
            w[:, j] = q[:, j]
    return q


def test_behind_the_blocks_errors_are_fed_on():
    weight, _, stats = correlated_layer(24, 72)
    ours = Grouped(bits=4, block_size=SIZE, behind=True).quantize(weight, stats=stats)
    wanted = by_hand(weight, stats, 4, SIZE)
    assert (ours.dequantize() != wanted.float()).float().mean() < 0.02  # ties, float32
    nearest = Grouped(bits=4, block_size=SIZE).quantize(weight)

    def error(w):
        d = (w.dequantize() - weight).double()
        return ((d @ stats.hessian.double()) * d).sum()

    assert error(ours) < 0.65 * error(nearest)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"finer": 0.1}, r"outside.bits is 8. Set outside.finer=0"),
        ({"bits": 4, "finer": 1.0}, r"outside.finer is 1; a share"),
        ({"bits": 4, "finer": -0.1}, r"outside.finer is -0.1"),
        ({"drift": 0.5}, r"outside.behind=true"),
        ({"behind": True, "drift": -1.0}, r"outside.drift is -1"),
    ],
)
def test_what_means_nothing_is_refused(options, said):
    with pytest.raises(RecipeError, match=said):
        Grouped(**options)


def test_shapes_that_do_not_belong_together(weight, finer):
    packed = Grouped(bits=4, block_size=SIZE, finer=0.08).quantize(weight, finer)
    shapes = {name: tuple(t.shape) for name, t in packed.tensors().items()}
    marks, written = packed.marks.tolist(), packed.layout()

    def say(marks=marks, layout=written, **changed):
        return misfit("finer", shapes | changed, layout, marks)

    assert say() is None
    assert say(marks=[0] * 7) == "7 bytes that mark 0 of 50 rows"
    assert say(marks=[*marks[:-1], 4]) == "7 bytes that mark 4 of 50 rows"  # behind the last row
    assert say(marks=marks[:-1]) == "6 bytes that mark 3 of 50 rows"
    assert say(below=(3, 19)) == "below of shape [3, 19] where [4, 19] is wanted"
    assert say(layout=written | {"bits": 8}) == "codes of 8 bits"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Make a checkpoint of `tiny` whose blocks are rounded to nearest: embedding and head count."""
    out = tmp_path_factory.mktemp("finer") / "out"
    settings = {"outside": "grouped", "outside.bits": 4, "outside.finer": 0.05,
                "outside.behind": True, "outside.drift": 1.0, "calibration.sequences": 64,
                "calibration.length": 128}  # fmt: skip
    quant_dllm.quantize("tiny", out, "rtn-2bit", settings=settings)
    return load(out).unpack()


def test_the_finer_rows_are_those_of_mask_and_commonest_tokens(tiny):
    base = load("tiny")
    path = bundled_text(base.source, "calibration")
    windows = token_windows(path, base.tokenizer, sequences=64, length=128, rule="packed", seed=0)
    counts = windows.flatten().bincount(minlength=4096)
    counts[base.mask_token_id] = 10**6
    error = (tiny.backbone.embed.weight - base.backbone.embed.weight).square().sum(1)
    energy = base.backbone.embed.weight.square().sum(1)
    exact = error < 3e-4 * energy
    assert exact.sum() == int(0.05 * 4096) and exact[base.mask_token_id]
    assert counts[exact].min() >= counts[~exact].max()


def test_the_head_makes_up_for_the_blocks_where_tokens_are_masked(tiny):
    """Its outputs are nearer to the 16-bit model's than those of the 16-bit head."""
    base = load("tiny")
    path = bundled_text(base.source, "calibration")
    windows = token_windows(path, base.tokenizer, sequences=64, length=128, rule="packed", seed=0)
    hidden = torch.rand(windows.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    canvas = windows.masked_fill(hidden, base.mask_token_id)
    with torch.no_grad():
        x = tiny.backbone.head_inputs(tiny.backbone.hidden(canvas))[hidden]
        wanted = base.logits_at(canvas, hidden, windows)
        ours = (tiny.backbone.head(x) - wanted).square().mean()
        theirs = (base.backbone.head(x) - wanted).square().mean()
    assert ours < theirs
