"""Embedding and head in groups: codes by hand, rows looked up, and what a whole file takes."""

import pytest
import torch

from quant_dllm.embedding import QuantEmbedding
from quant_dllm.errors import RecipeError
from quant_dllm.linear import QuantLinear
from quant_dllm.models.backbone import Backbone
from quant_dllm.models.config import BackboneConfig
from quant_dllm.quantizers import outside
from quant_dllm.quantizers.outside import Grouped
from quant_dllm.recipe import Recipe
from quant_dllm.weights.grouped import GroupedWeight


@pytest.fixture
def weight():
    return torch.randn(50, 37, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("bits", [4, 8])
def test_values_are_codes_scaled_from_their_middle(bits):
    dice = torch.Generator().manual_seed(0)
    codes = torch.randint(2**bits, (5, 7), generator=dice).to(torch.uint8)
    scales = torch.randn(5, 3, generator=dice).half()
    packed = GroupedWeight.of(codes, scales, bits, 3)
    by_hand = torch.tensor(
        [
            [float(scales[i, j // 3]) * (int(codes[i, j]) - 2 ** (bits - 1)) for j in range(7)]
            for i in range(5)
        ]
    )
    assert torch.equal(packed.dequantize(), by_hand)
    again = GroupedWeight(**packed.tensors(), **packed.layout())
    assert torch.equal(again.dequantize(slice(1, 3)), by_hand[1:3])
    assert torch.equal(again.dequantize(torch.tensor([4, 0, 4])), by_hand[[4, 0, 4]])
    assert packed.codes.shape == (5, 7 if bits == 8 else 4)


@pytest.mark.parametrize(("bits", "most"), [(4, 0.02), (8, 1e-4)])
def test_rounding_loses_what_so_many_bits_must(weight, bits, most):
    """A normal group of 16 spans about 1.8 deviations a side: steps of 1.8/2^(bits − 1)."""
    packed = Grouped(bits=bits, block_size=16).quantize(weight)
    error = (packed.dequantize() - weight).square().sum() / weight.square().sum()
    assert most / 10 < error < most


def test_the_clip_is_the_best_of_those_searched(weight, monkeypatch):
    found = {}
    for share in outside.SHARES:
        monkeypatch.setattr(outside, "SHARES", (share,))
        made = Grouped(bits=4, block_size=37).quantize(weight).dequantize()
        found[share] = (made - weight).square().sum(1)
    monkeypatch.undo()
    ours = (Grouped(bits=4, block_size=37).quantize(weight).dequantize() - weight).square().sum(1)
    assert torch.allclose(ours, torch.stack(list(found.values())).amin(0), rtol=1e-4)
    assert (ours < found[1.0]).any()


def test_zeros_stay_zeros_and_tiles_make_no_difference(weight, monkeypatch):
    weight[3] = 0
    whole = Grouped(bits=4, block_size=16).quantize(weight)
    assert not whole.dequantize()[3].any()
    monkeypatch.setattr(outside, "TILE", 37 * 4)
    parts = Grouped(bits=4, block_size=16).quantize(weight)
    assert all(torch.equal(t, whole.tensors()[name]) for name, t in parts.tensors().items())
    with pytest.raises(RecipeError, match=r"outside.block_size is 0"):
        Grouped(block_size=0)


def test_an_embedding_looks_rows_up_in_the_dtype_of_the_model(weight):
    packed = Grouped(bits=4, block_size=16).quantize(weight)
    embed, ids = QuantEmbedding.of(packed), torch.tensor([[3, 49, 3], [0, 1, 2]])
    assert torch.equal(embed(ids), packed.dequantize()[ids])
    embed = embed.to(torch.bfloat16)
    assert embed(ids).dtype == torch.bfloat16
    assert torch.equal(embed.scales, packed.scales) and embed.scales.dtype == torch.float16
    x = torch.randn(2, 5, 37)
    assert torch.allclose(embed.scores(x), x @ packed.dequantize().T, atol=1e-5)
    assert torch.equal(embed.unpacked(torch.float32)(ids), packed.dequantize()[ids])
    assert "37, 50, grouped" in repr(embed)


def test_gradients_pass_a_packed_head(weight, monkeypatch):
    from quant_dllm.kernels import reference

    packed = Grouped(block_size=16).quantize(weight)
    monkeypatch.setattr(reference, "TILE", 37 * 7)
    x = torch.randn(4, 37, requires_grad=True)
    y = QuantLinear.of(packed)(x)
    (ours,) = torch.autograd.grad((y**2).sum(), x)
    (theirs,) = torch.autograd.grad(((x @ packed.dequantize().T) ** 2).sum(), x)
    assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_forced_kernel_is_forced_on_the_blocks_alone(weight, monkeypatch):
    monkeypatch.setenv("QUANT_DLLM_KERNEL", "native")
    packed = Grouped().quantize(weight)
    assert QuantLinear.of(packed)(torch.randn(1, 37)).shape == (1, 50)


LLADA_8B = BackboneConfig(
    width=4096, blocks=32, heads=32, kv_heads=32, mlp_width=12288, vocab=126464, context=4096,
    rope_theta=5e5, norm_eps=1e-5,
)  # fmt: skip


def test_a_whole_file_of_llada_8b_takes_at_most_two_point_four_bits():
    """By shapes alone: 4.03 with 16-bit scales, embedding and head."""
    with torch.device("meta"):
        network = Backbone(LLADA_8B)
    count = sum(p.numel() for p in network.parameters())
    assert count == pytest.approx(8.016e9, rel=1e-3)

    def layer(out, inputs, scales):
        planes = 2 * inputs // 128
        if scales == 16:
            return 2 * out * inputs // 8 + 2 * (planes * out + 2 * inputs) + planes // 2
        codes = scales * (planes * out + 2 * inputs) // 8
        return 2 * out * inputs // 8 + codes + 8 * planes + planes // 2

    def file(scales, form):
        total = 0
        for name, p in network.named_parameters():
            if name.startswith("blocks.") and p.ndim == 2:
                total += layer(*p.shape, scales)
            elif p.ndim == 2 and form is not None:
                total += form.stored_bytes(*p.shape)
            else:
                total += 2 * p.numel()
        return 8 * total / count

    default = Recipe.load("quant-dllm-2bit").outside.build("outside")
    assert file(16, None) == pytest.approx(4.03, abs=0.01)  # method.md, section 5
    assert file(6, default) <= 2.4
    assert file(6, Grouped(bits=4)) <= 2.37
    codes = torch.empty(126464, 2048, dtype=torch.uint8, device="meta")
    scales = torch.empty(126464, 32, dtype=torch.float16, device="meta")
    assert GroupedWeight(codes, scales, 4, 128, 4096).stored_bits == 4 + 16 / 128
