from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quant_dllm.weights.affine import AffineWeight
from quant_dllm.weights.binary import BinaryWeight, Planes
from quant_dllm.weights.packing import (
    bit_planes,
    from_bit_planes,
    pack,
    packed_width,
    places,
    unpack,
)
from quant_dllm.weights.uniform import Group, UniformWeight


@settings(deadline=None, max_examples=60)
@given(rows=st.integers(1, 5), width=st.integers(1, 70), seed=st.integers(0, 99))
def test_unpack_undoes_pack(rows, width, seed):
    bits = torch.rand(rows, width, generator=torch.Generator().manual_seed(seed)) < 0.5
    packed = pack(bits)
    assert packed.shape == (rows, packed_width(width))
    assert torch.equal(unpack(packed, width), bits)


def test_the_lowest_bit_is_the_first_channel():
    bits = torch.tensor([[1, 0, 0, 0, 0, 0, 0, 0, 1, 1]]).bool()
    assert pack(bits).tolist() == [[1, 3]]


def test_packing_equals_numpys_packbits():
    bits = torch.rand(7, 53, generator=torch.Generator().manual_seed(0)) < 0.5
    numpy = __import__("numpy")
    expected = numpy.packbits(bits.numpy(), axis=1, bitorder="little")
    assert (pack(bits).numpy() == expected).all()


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_codes_survive_their_planes(bits):
    codes = torch.randint(2**bits, (3, 21), generator=torch.Generator().manual_seed(0))
    assert torch.equal(from_bit_planes(bit_planes(codes, bits)), codes.int())


def test_places_lie_end_to_end():
    found = list(places(40, 16, [1, 3, 2]))
    assert [(p.channels.start, p.channels.stop) for p in found] == [(0, 16), (16, 32), (32, 40)]
    assert [p.first_plane for p in found] == [0, 1, 4]
    assert [p.first_byte for p in found] == [0, 2, 8]
    assert [p.first_column for p in found] == [0, 16, 64]


def random_binary(out, widths, orders, seed=0):
    dice = torch.Generator().manual_seed(seed)
    return [
        Planes(
            torch.rand(k, out, w, generator=dice) < 0.5,
            torch.rand(k, out, generator=dice).half().float(),
            torch.rand(k, w, generator=dice).half().float(),
        )
        for w, k in zip(widths, orders, strict=True)
    ]


@pytest.mark.parametrize("out", [1, 5, 64])
@pytest.mark.parametrize(
    ("widths", "orders"), [([16, 16, 8], [1, 3, 2]), ([128], [4]), ([8, 8, 8, 3], [2, 2, 2, 2])]
)
def test_a_binary_weight_is_the_sum_of_its_planes(out, widths, orders):
    blocks = random_binary(out, widths, orders)
    weight = BinaryWeight.of(blocks, widths[0])
    by_hand = torch.cat(
        [
            sum(
                (2.0 * b.signs[k] - 1) * b.rows[k][:, None] * b.columns[k][None, :]
                for k in range(len(b.rows))
            )
            for b in blocks
        ],
        dim=1,
    )
    assert torch.allclose(weight.dequantize(), by_hand, atol=1e-6)  # fp32 sums of four terms
    assert torch.equal(weight.dequantize(slice(0, 1)), weight.dequantize()[:1])
    assert weight.in_features == sum(widths)
    assert weight.code_bits == sum(w * k for w, k in zip(widths, orders, strict=True)) / sum(widths)


def test_bits_are_counted_as_the_method_counts_them():
    weight = BinaryWeight.of(random_binary(4096, [128] * 2, [2, 2]), 128)
    counted = 2 * (1 + 16 / 128 + 16 / 4096)  # method.md, section 5
    assert weight.stored_bits == pytest.approx(counted, abs=1e-4)  # orders: a byte a block
    grid = Group(torch.zeros(4096, 128).int(), torch.ones(4096), torch.zeros(4096).int(), 2)
    uniform = UniformWeight.of([grid, grid], 128)
    assert uniform.stored_bits == pytest.approx(2 + (16 + 2) / 128, abs=1e-4)  # 2.14
    affine = AffineWeight.of([replace(grid, zero_point=torch.zeros(4096))] * 2, 128)
    assert affine.stored_bits == pytest.approx(2 + (16 + 16) / 128, abs=1e-4)  # 2.25


@pytest.mark.parametrize("kind", [UniformWeight, AffineWeight])
def test_evenly_spaced_levels_are_codes_scaled_from_their_zero(kind):
    dice = torch.Generator().manual_seed(0)

    def zero_point(bits):
        whole = torch.randint(2**bits, (6,), generator=dice).float()
        fraction = torch.randn(6, generator=dice).half().float()
        return whole if kind is UniformWeight else fraction

    groups = [
        Group(
            torch.randint(2**b, (6, w), generator=dice),
            torch.rand(6, generator=dice).half().float(),
            zero_point(b),
            b,
        )
        for w, b in [(16, 2), (16, 3), (5, 1)]
    ]
    weight = kind.of(groups, 16)
    again = kind(**weight.tensors(), **weight.layout())
    assert torch.equal(again.dequantize(), weight.dequantize())
    by_hand = torch.cat([g.scale[:, None] * (g.codes - g.zero_point[:, None]) for g in groups], 1)
    assert torch.equal(weight.dequantize(), by_hand)
    assert torch.equal(weight.dequantize(slice(2, 5)), by_hand[2:5])


def test_a_weight_is_made_again_of_what_it_stores():
    weight = BinaryWeight.of(random_binary(5, [16, 8], [2, 3]), 16)
    again = BinaryWeight(**weight.tensors(), **weight.layout())
    assert torch.equal(again.dequantize(), weight.dequantize())
