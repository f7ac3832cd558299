"""Codes of scales against least squares solved anew after every one of them."""

import pytest
import torch

from quant_dllm.errors import CheckpointError, RecipeError
from quant_dllm.quantizers.daq import DataAwareAnyOrderQuantizer
from quant_dllm.rounding.scale_codes import code_scales
from quant_dllm.rounding.second_order import Block, Matrix, refine
from quant_dllm.statistics.hessian import damp
from quant_dllm.weights.binary import BinaryWeight
from quant_dllm.weights.compact import CompactWeight, Grid
from tests.conftest import correlated_layer

ORDERS = [2, 1, 3, 2]


def refined(out=24, inputs=72, size=20, orders=ORDERS):
    """A matrix after second-order steps: four blocks of different orders, the last one short."""
    weight, _, stats = correlated_layer(out, inputs)
    quantizer = DataAwareAnyOrderQuantizer(emphasis=1.0)
    packed = quantizer.quantize(weight, stats, torch.tensor(orders), size)
    planes = [packed.block(place) for place in packed.places()]
    m = Matrix.of(weight, damp(stats.hessian, 0.01), planes)
    refine(m, 2)
    return m


def copied(m):
    blocks = [
        Block(b.channels, b.signs.clone(), b.rows.clone(), b.columns.clone()) for b in m.blocks
    ]
    return Matrix(m.weight, m.hessian, blocks)


def loss_of(m, values):
    rest = (m.weight - values).double()
    return ((rest @ m.hessian.double()) * rest).sum().item()


def design(m, row):
    """Return the matrix whose columns multiply the row scales of one row: [in, planes]."""
    columns = []
    for block in m.blocks:
        for k in range(len(block.rows)):
            v = torch.zeros(m.weight.shape[1], dtype=torch.float64)
            v[block.channels] = (block.signs[k, row] * block.columns[k]).double()
            columns.append(v)
    return torch.stack(columns, 1)


@pytest.mark.parametrize("bits", [8, 5])
def test_each_row_scale_is_rounded_where_the_ones_before_it_leave_it(bits):
    m = refined()
    packed = code_scales(m, bits, 20)
    root = torch.linalg.cholesky(m.hessian.double()).T  # J of a row = |root (w − V a)|²
    grids = [Grid(low, step, bits) for low, step in packed.row_grids.T]
    wrong = 0
    for row in range(24):
        V, left = root @ design(m, row), root @ m.weight[row].double()
        for p, grid in enumerate(grids):
            best = torch.linalg.lstsq(V[:, p:], left).solution[:1]
            ours = packed.row_scales[row, p].double()
            wrong += abs(ours - grid.values(grid.codes(best.float()))[0]) > 1e-6
            left = left - V[:, p] * ours
    assert wrong <= 2  # of 192: a root half way between two codes, in float32


def test_the_weight_is_what_the_matrix_became():
    m = refined()
    packed = code_scales(m, 6, 20)
    assert torch.allclose(packed.dequantize(), m.values(), atol=1e-5)
    again = CompactWeight(**packed.tensors(), **packed.layout())
    assert torch.equal(again.dequantize(), packed.dequantize())
    assert torch.equal(packed.dequantize(slice(3, 9)), packed.dequantize()[3:9])


@pytest.mark.parametrize(("bits", "most"), [(8, 0.002), (6, 0.03)])
def test_codes_lose_little_and_less_than_nearest_ones(bits, most):
    m = refined()
    floats = loss_of(m, BinaryWeight.of(m.planes(), 20).dequantize())
    nearest = loss_of(m, CompactWeight.of(m.planes(), 20, bits).dequantize())
    chosen = loss_of(m, code_scales(copied(m), bits, 20).dequantize())
    assert chosen < nearest
    assert chosen <= (1 + most) * floats


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_grids_span_their_scales(bits):
    scales = torch.rand(500, generator=torch.Generator().manual_seed(0)).square() + 1e-3
    grid = Grid.fit(scales, bits)
    roots = grid.values(grid.codes(scales)).sqrt() - scales.sqrt()
    assert roots.abs().max() <= 0.55 * float(grid.step) + 1e-3  # float16: 2⁻¹¹ of a root below 1
    assert grid.codes(scales).min() == 0 and grid.codes(scales).max() >= 2**bits - 2
    equal = Grid.fit(torch.full((7,), 0.25), bits)
    assert torch.equal(equal.values(equal.codes(torch.full((7,), 0.25))), torch.full((7,), 0.25))


def test_new_scales_keep_the_values_whatever_their_signs():
    m = refined()
    packed = CompactWeight.of(m.planes(), 20, 8)
    same = packed.with_scales(packed.row_scales.float(), packed.column_scales.float())
    assert torch.allclose(same.dequantize(), packed.dequantize(), atol=0.02)
    turned = packed.with_scales(-packed.row_scales.float(), packed.column_scales.float())
    assert torch.allclose(turned.dequantize(), -same.dequantize(), atol=1e-6)
    assert (turned.row_scales >= 0).all()
    doubled = packed.scale_rows(torch.full((24,), 4.0))
    assert torch.allclose(doubled.dequantize(), 4 * same.dequantize(), atol=0.02)


def test_the_quantizer_stores_as_many_bits_as_it_is_told(layer):
    weight, stats = layer
    found = {}
    for scales in (16, 8, 6):
        quantizer = DataAwareAnyOrderQuantizer(emphasis=1.0, refinements=1, scales=scales)
        found[scales] = quantizer.quantize(weight, stats, torch.tensor(ORDERS), 20)
    assert [w.kind for w in found.values()] == ["binary", "compact", "compact"]
    bits = [w.stored_bits for w in found.values()]
    assert bits == sorted(bits, reverse=True) and len(set(bits)) == 3
    plain = DataAwareAnyOrderQuantizer(scales=8).quantize(weight, stats, torch.tensor(ORDERS), 20)
    assert plain.kind == "compact"
    with pytest.raises(RecipeError, match=r"quantizer.scales is 3; 16, or 4 to 8"):
        DataAwareAnyOrderQuantizer(scales=3)


def test_wide_and_narrow_layers_store_fewer_bits_than_groups_of_sixteen_bit_scales():
    """GPTQ in groups of 128 takes 2 + 18/128 = 2.141 bits a weight."""

    def stored(out, inputs, bits):
        planes = 2 * -(-inputs // 128)
        tensors = {
            "planes": 2 * -(-inputs // 8) * out,
            "row_codes": planes * bits * -(-out // 8),
            "column_codes": bits * -(-2 * inputs // 8),
            "grids": 2 * 2 * 2 * planes,
            "orders": planes // 2,
        }
        return 8 * sum(tensors.values()) / (out * inputs)

    assert stored(4096, 4096, 8) <= 2.14
    assert stored(288, 288, 6) < 2 + 18 * 3 / 288  # its last group has 32 channels
    assert stored(256, 256, 6) <= 2.16
    m = refined()
    for bits in (6, 8):
        packed = CompactWeight.of(m.planes(), 20, bits)
        for name, shape in packed.shapes().items():
            assert tuple(getattr(packed, name).shape) == shape
    weight, _, stats = correlated_layer(256, 256, tokens=600)
    quantizer = DataAwareAnyOrderQuantizer(rounds=2, scales=8)
    packed = quantizer.quantize(weight, stats, torch.tensor([2, 2]), 128)
    assert packed.stored_bits == pytest.approx(stored(256, 256, 8))


def test_damaged_codes_are_told_of():
    packed = CompactWeight.of(refined().planes(), 20, 6)
    broken = packed.tensors() | {"row_codes": packed.row_codes[:-1]}
    with pytest.raises(CheckpointError, match=r"row_codes .* its orders want"):
        CompactWeight(**broken, **packed.layout()).dequantize()
