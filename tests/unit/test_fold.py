import pytest
import torch

import quant_dllm
from quant_dllm.linear import QuantLinear
from quant_dllm.models.backbone import Block
from quant_dllm.models.config import BackboneConfig
from quant_dllm.models.sight import Sight
from quant_dllm.pipeline.fold import can_fold, fold
from quant_dllm.quantizers.rtn import RTN
from quant_dllm.statistics.layer import NO_STATISTICS
from tests.conftest import CONFIG, SMALL_RECIPE, save_model

WIDTHS = {
    "width": 24, "blocks": 1, "heads": 4, "kv_heads": 4, "mlp_width": 40, "vocab": 50,
    "context": 32, "rope_theta": 1e4, "norm_eps": 1e-5,
}  # fmt: skip


def block_and_inputs(**changes):
    config = BackboneConfig(**WIDTHS | changes)
    torch.manual_seed(0)
    block = Block(config).requires_grad_(False)
    block.attention_norm.weight.data = torch.rand(24) + 0.5
    block.mlp_norm.weight.data = torch.rand(24) + 0.5
    return block, torch.randn(2, 9, 24), Sight.of(config, 9, "cpu")


def group_of(block, stage):
    (group,) = block.stages[stage]
    return group


def scale(block, stage):
    """Return a scale for the inputs of a stage, and multiply its weights by it."""
    layers = [block.get_submodule(name) for name in group_of(block, stage).layers]
    s = torch.linspace(0.2, 5.0, layers[0].weight.shape[1])
    for layer in layers:
        layer.weight.data = layer.weight * s
    return s


@pytest.mark.parametrize("stage", range(4))
def test_the_block_computes_what_it_did(stage):
    block, x, sight = block_and_inputs()
    before = block(x, sight)
    assert can_fold(block, group_of(block, stage))
    s = scale(block, stage)
    assert not torch.allclose(block(x, sight), before, atol=1e-2)
    fold(block, group_of(block, stage), s, {})
    assert torch.allclose(block(x, sight), before, atol=1e-5)  # fp32


def test_stages_may_be_folded_one_after_another():
    block, x, sight = block_and_inputs()
    before = block(x, sight)
    for stage in range(4):
        fold(block, group_of(block, stage), scale(block, stage), {})
    assert torch.allclose(block(x, sight), before, atol=1e-5)  # fp32


@pytest.mark.parametrize("stage", [1, 3])  # v before out, up before down
def test_a_packed_producer_carries_the_scale_in_its_own_scales(stage):
    block, x, sight = block_and_inputs()
    name = group_of(block, stage).producer
    layer = block.get_submodule(name)
    packed = {name: RTN().quantize(layer.weight.data, NO_STATISTICS, torch.full((3,), 4), 8)}
    layer.weight.data = packed[name].dequantize()
    before, codes = block(x, sight), packed[name].planes
    fold(block, group_of(block, stage), scale(block, stage), packed)
    assert torch.equal(layer.weight, packed[name].dequantize())
    assert torch.equal(packed[name].planes, codes)
    assert torch.allclose(block(x, sight), before, atol=1e-3)  # scales are float16


def test_a_value_channel_that_feeds_several_heads_cannot_be_divided():
    block, _, _ = block_and_inputs(kv_heads=2)
    assert [can_fold(block, group_of(block, stage)) for stage in range(4)] == [
        True,
        False,
        True,
        True,
    ]


@pytest.mark.parametrize("kv_heads", [2, 1])
def test_an_awq_model_of_many_bits_is_the_model_that_it_was_made_from(kv_heads, tmp_path):
    """Eight bits leave little error, so that a fold gone wrong would stand out."""
    base = save_model(tmp_path / "base", CONFIG | {"n_kv_heads": kv_heads})
    out = tmp_path / "awq"
    record = quant_dllm.quantize(
        base, out, "awq-4bit", settings=SMALL_RECIPE | {"precision.bits": 8}
    )
    assert record.bits.code == 8.0
    model, ids = quant_dllm.load(out), torch.arange(24).view(2, 12)
    wanted = quant_dllm.load(base)(ids).logits
    assert sum(isinstance(m, QuantLinear) for m in model.modules()) == 14
    assert (model(ids).logits - wanted).norm() < 0.02 * wanted.norm()  # 8 bits: 1/255 of a span
    norms = [m.weight for n, m in model.named_modules() if n.endswith("attention_norm")]
    assert all(weight.std() > 0.01 for weight in norms)  # they were ones: something was folded


def test_an_awq_model_is_measured_and_beats_its_plain_rounding(small_model, tmp_path):
    found = {}
    for name in ("awq-3bit", "rtn-3bit"):
        settings = SMALL_RECIPE | ({"quantizer.search": False} if "rtn" in name else {})
        quant_dllm.quantize(small_model, tmp_path / name, name, settings=settings)
        found[name] = quant_dllm.evaluate(
            tmp_path / name, small_model, sequences=4, length=32, draws=2
        )
    assert 0 < found["awq-3bit"].kl < found["rtn-3bit"].kl
