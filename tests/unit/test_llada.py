"""Our LLaDA against logits that upstream's own code gave, and the truth of what the family says."""

import json
from itertools import islice

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from quant_dllm.errors import ModelError
from quant_dllm.models.backbone import Backbone
from quant_dllm.models.config import BackboneConfig
from quant_dllm.models.llada import FAMILY, config
from quant_dllm.models.load import load
from quant_dllm.models.sight import Sight
from quant_dllm.pipeline.spool import Pool, Spool
from quant_dllm.pipeline.stream import Runs, Stream
from tests.conftest import GOLDEN

CONFIG = BackboneConfig(
    width=24, blocks=2, heads=4, kv_heads=2, mlp_width=40, vocab=50, context=32,
    rope_theta=1e4, norm_eps=1e-5,
)  # fmt: skip


def test_logits_equal_upstreams():
    golden = load_file(GOLDEN / "llada" / "golden.safetensors")
    logits = load(GOLDEN / "llada")(golden["input_ids"]).logits
    assert logits.shape == golden["logits"].shape
    assert (logits - golden["logits"]).abs().max() <= 1e-4


def test_logits_at_some_positions_are_rows_of_all():
    model = load(GOLDEN / "llada")
    ids = load_file(GOLDEN / "llada" / "golden.safetensors")["input_ids"]
    every = model(ids).logits
    assert torch.allclose(model.predict(ids, slice(5, 9)), every[:, 5:9], atol=1e-6)
    where = torch.rand(ids.shape, generator=torch.Generator().manual_seed(0)) < 0.3
    assert torch.allclose(model.logits_at(ids, where, ids), every[where], atol=1e-6)


def test_every_tensor_of_a_checkpoint_is_claimed_once():
    names = [FAMILY.upstream(name) for name in load(GOLDEN / "llada").backbone.state_dict()]
    assert len(names) == len(set(names))
    assert set(names) == set(load_file(GOLDEN / "llada" / "model.safetensors"))


def test_the_head_and_the_last_projection_are_told_apart():
    assert FAMILY.upstream("head.weight") == "model.transformer.ff_out.weight"
    down = FAMILY.upstream("blocks.11.mlp.down.planes")
    assert down == "model.transformer.blocks.11.ff_out.planes"


def test_stages_name_every_linear_layer_and_what_it_receives():
    """What `stage_inputs` yields is what hooks on the layers see, layer by layer."""
    torch.manual_seed(0)
    block = Backbone(CONFIG).blocks[0]
    x, sight, seen = torch.randn(3, 7, 24), Sight.of(CONFIG, 7, "cpu"), {}
    linears = [n for n, m in block.named_modules() if isinstance(m, nn.Linear)]
    assert sorted(linears) == sorted(
        n for stage in block.stages for group in stage for n in group.layers
    )
    for name in linears:
        block.get_submodule(name).register_forward_pre_hook(
            lambda _, args, name=name: seen.update({name: args[0]})
        )
    block(x, sight)
    expected = dict(seen)
    for stage, inputs in zip(block.stages, block.stage_inputs(x, sight), strict=True):
        for group, received in zip(stage, inputs, strict=True):
            assert all(torch.equal(received, expected[name]) for name in group.layers)


def test_attention_is_bidirectional():
    model = load(GOLDEN / "llada")
    ids = torch.arange(12)[None]
    changed = ids.clone()
    changed[0, -1] = 99
    assert not torch.allclose(model(ids).logits[0, 0], model(changed).logits[0, 0], atol=1e-4)


def test_grouped_heads_equal_repeated_ones():
    torch.manual_seed(0)
    grouped, full = Backbone(CONFIG), Backbone(
        BackboneConfig(**{**vars(CONFIG), "kv_heads": CONFIG.heads})
    )  # fmt: skip
    state = grouped.state_dict()
    for name in state:
        if ".k." in name or ".v." in name:
            state[name] = state[name].unflatten(0, (2, 6)).repeat_interleave(2, 0).flatten(0, 1)
    full.load_state_dict(state)
    ids = torch.arange(9)[None]
    assert torch.allclose(grouped(ids), full(ids), atol=1e-5)


@pytest.mark.parametrize(
    ("key", "value"), [("alibi", True), ("block_group_size", 4), ("include_bias", True)]
)
def test_a_variant_that_nobody_published_is_refused(key, value):
    raw = json.loads((GOLDEN / "llada" / "config.json").read_text())
    with pytest.raises(ModelError, match=key):
        config(raw | {key: value})


def test_a_pass_goes_on_with_layers_that_were_replaced_behind_it(tmp_path):
    """What waits in front of a stage sees, behind it, what took the stage's layers' place."""
    torch.manual_seed(0)
    network = Backbone(CONFIG).eval().requires_grad_(False)
    block, sight = network.blocks[0], network.sight(6, "cpu")
    x = torch.randn(2, 6, 24)
    spool = Spool(tmp_path, "stream", Pool(1 << 20), torch.device("cpu"))
    spool.put(0, x, 0)
    runs = Runs(block, Stream(spool, [range(1)], {0: 1}, sight))
    for stage, groups in enumerate(block.stages):
        (seen,) = runs.receive(0, stage)
        (anew,) = next(islice(block.stage_inputs(x, sight), stage, None))
        assert torch.equal(seen, anew)
        for group in groups:
            for name in group.layers:
                block.get_submodule(name).weight.data *= 1.5
    (again,) = runs.receive(0, 1)  # a stage behind it: all anew
    assert torch.equal(again, list(block.stage_inputs(x, sight))[1][0])
    runs.advance(1)
    assert torch.equal(spool[0], block(x, sight))
