"""What every registered quantizer must do. A new one is tested by being registered."""

import dataclasses

import pytest
import torch

from quant_dllm.quantizers.base import Quantizer
from quant_dllm.recipe import QUANTIZERS
from quant_dllm.statistics.layer import Needs, output_error
from quant_dllm.weights.base import WEIGHTS, QuantizedWeight

BLOCK = 20


@pytest.fixture(params=sorted(QUANTIZERS.targets))
def quantizer(request):
    return QUANTIZERS.get(request.param)()


def rounded(quantizer, layer, bits):
    return quantizer.quantize(*layer, torch.tensor(bits), BLOCK)


def test_is_a_frozen_dataclass_with_defaults(quantizer):
    assert isinstance(quantizer, Quantizer)
    assert type(quantizer).__dataclass_params__.frozen
    assert all(f.kw_only for f in dataclasses.fields(quantizer))
    assert type(quantizer).__doc__


def test_leaves_its_inputs_alone(quantizer, layer):
    weight, stats = layer
    before = weight.clone(), stats.moment.clone()
    rounded(quantizer, layer, [2, 2, 2, 2])
    assert torch.equal(weight, before[0]) and torch.equal(stats.moment, before[1])


def test_is_deterministic(quantizer, layer):
    first, second = (rounded(quantizer, layer, [2, 1, 3, 2]).tensors() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_bit_more_is_better(quantizer, layer):
    weight, stats = layer
    errors = [
        output_error(weight, rounded(quantizer, layer, [bits] * 4).dequantize(), stats)
        for bits in (1, 2, 3, 4)
    ]
    assert errors == sorted(errors, reverse=True) and len(set(errors)) == 4


def test_returns_a_weight_that_reports_what_it_stores(quantizer, layer):
    weight, _ = layer
    packed = rounded(quantizer, layer, [2, 1, 3, 2])
    assert isinstance(packed, QuantizedWeight)
    assert WEIGHTS.get(packed.kind) is type(packed)
    assert (packed.out_features, packed.in_features) == weight.shape
    extra = packed.code_bits - 2.0  # 20 · (2 + 1 + 3) + 12 · 2 over 72
    assert 0 <= extra < 1 if packed.kind == "simulated" else extra == 0  # salient columns
    assert packed.stored_bits > packed.code_bits
    if packed.kind != "simulated":
        stored = 8 * sum(t.nbytes for t in packed.tensors().values())
        assert packed.stored_bits == stored / weight.numel()


def test_stored_tensors_make_the_same_weight_again(quantizer, layer):
    packed = rounded(quantizer, layer, [2, 1, 3, 2])
    again = type(packed)(**packed.tensors(), **packed.layout())
    assert torch.equal(again.dequantize(), packed.dequantize())
    assert packed.dequantize().dtype == torch.float32
    assert torch.equal(packed.dequantize(slice(3, 9)), packed.dequantize()[3:9])


def test_stays_near_the_weight_and_finite_where_inputs_and_weights_are_dead(quantizer, layer):
    weight, stats = layer
    weight = weight.clone()
    weight[5], weight[:, 30] = 0.0, 0.0
    stats = dataclasses.replace(stats, moment=stats.moment.clone())
    stats.moment[30], stats.moment[:, 30] = 0.0, 0.0
    values = rounded(quantizer, (weight, stats), [2, 2, 2, 2]).dequantize()
    assert torch.isfinite(values).all()
    assert values[5].abs().max() < 0.05


def test_calibrated_methods_beat_round_to_nearest(quantizer, layer, record_property):
    if quantizer.needs == Needs.NOTHING:
        pytest.skip("it knows no more of the layer than round-to-nearest")
    weight, stats = layer
    rtn = rounded(QUANTIZERS.get("rtn")(), layer, [2] * 4).dequantize()
    ours = rounded(quantizer, layer, [2] * 4).dequantize()
    ratio = output_error(weight, ours, stats) / output_error(weight, rtn, stats)
    record_property("error relative to rtn", ratio)
    assert ratio <= 1.0
