"""What every registered family must do. A new one is tested by being registered."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import quant_dllm
from quant_dllm.evaluation.layers import LayerYardstick
from quant_dllm.linear import QuantLinear
from quant_dllm.models.experts import Router
from quant_dllm.models.family import ModelFamily
from quant_dllm.models.load import load
from quant_dllm.models.source import FAMILIES, open_model
from quant_dllm.pipeline.job import Job
from quant_dllm.pipeline.sensitivity import SensitivityPass
from quant_dllm.pipeline.teacher import Teacher
from quant_dllm.pipeline.tune import EndToEndTuning
from quant_dllm.recipe import Recipe
from quant_dllm.tuning.end_to_end import EndToEnd
from quant_dllm.tuning.objective import TopLogits
from tests.contract.conftest import SMALL
from tests.families import EXAMPLES, LENGTH, edit


def test_is_complete(family):
    assert isinstance(family, ModelFamily)
    assert family.name in FAMILIES.targets and family.name in EXAMPLES
    assert family.architectures and family.models and family.names
    others = [FAMILIES.get(name) for name in FAMILIES.targets if name != family.name]
    assert not set(family.architectures) & {a for f in others for a in f.architectures}


def test_logits_equal_upstreams(model, example, record_property):
    logits = model(example.input_ids).logits
    assert logits.shape == example.logits.shape
    difference = (logits - example.logits).abs().max().item()
    record_property("difference of logits", difference)
    assert difference <= 1e-4
    assert example.logits.std() > 0.1  # a flat model would agree with anything


def test_every_tensor_of_a_checkpoint_is_claimed_once(model, example):
    names = [model.family.upstream(name) for name in model.backbone.state_dict()]
    assert len(names) == len(set(names))
    assert set(names) == set(load_file(example.folder / "model.safetensors"))


def test_the_mask_token_is_found(model, example):
    assert model.mask_token_id == example.mask_token_id


def test_stages_name_every_linear_layer_and_what_it_receives(model):
    """What `stage_inputs` yields is what hooks on the layers see, layer by layer."""
    torch.manual_seed(0)
    width, seen = model.source.config.width, {}
    x, sight = torch.randn(2, LENGTH, width), model.backbone.sight(LENGTH, "cpu")
    for block in model.backbone.blocks:
        linears = [n for n, m in block.named_modules() if isinstance(m, nn.Linear)]
        named = [n for stage in block.stages for group in stage for n in group.layers]
        assert sorted(linears) == sorted(named) and len(block.stages) == 4
        hooks = [
            block.get_submodule(name).register_forward_pre_hook(
                lambda _, args, name=name: seen.update({name: args[0].flatten(0, -2)})
            )
            for name in linears
        ]
        with torch.no_grad():
            block(x, sight)
            expected = dict(seen)
            for stage, inputs in zip(block.stages, block.stage_inputs(x, sight), strict=True):
                for group, received in zip(stage, inputs, strict=True):
                    for name in group.layers:
                        if name in expected:  # an expert that nobody chose was not called
                            assert torch.equal(received.flatten(0, -2), expected[name])
                        else:
                            assert group.routed and len(received) == 0
        for hook in hooks:
            hook.remove()


def test_it_sees_what_its_topology_lets_it_see(model, example):
    block = model.source.config.attention_block
    changed = example.input_ids.clone()
    changed[:, -1] = (changed[:, -1] + 1) % 60
    moved = (model(changed).logits - model(example.input_ids).logits).abs().amax(-1)
    if block:
        assert moved[:, : LENGTH - block].max() < 1e-5  # sums of experts in another order
        assert (moved[:, LENGTH - block :] > 0).all()
    else:
        assert (moved > 0).all()


def test_positions_are_read_in_the_right_row(model, example):
    """Position i is read from row i − 1 of a shifted family, position 0 from row 0."""
    ids, rows = example.input_ids, model(example.input_ids).logits
    own = torch.cat((rows[:, :1], rows[:, :-1]), dim=1) if model.family.shift else rows
    assert torch.allclose(model.predict(ids, slice(0, LENGTH)), own, atol=1e-5)
    assert torch.allclose(model.predict(ids, slice(7, 12)), own[:, 7:12], atol=1e-5)
    where = torch.rand(ids.shape, generator=torch.Generator().manual_seed(0)) < 0.4
    where[0, 0] = True  # the text is the canvas: finished blocks look as the blocks themselves do
    assert torch.allclose(model.logits_at(ids, where, ids), own[where], atol=1e-5)


def test_a_hidden_position_sees_the_text_of_finished_blocks(model, example):
    """What `logits_at` gives for a block is what the model gives when that block's turn comes."""
    block, ids = model.source.config.attention_block, example.input_ids
    where = torch.rand(ids.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    canvas = torch.where(where, example.mask_token_id, ids)
    found = torch.full((*ids.shape, example.logits.shape[-1]), torch.nan)
    found[where] = model.logits_at(canvas, where, ids)
    size = block or LENGTH
    for start in range(0, LENGTH, size):
        turn = torch.cat((ids[:, :start], canvas[:, start:]), dim=1)
        expected = model.predict(turn, slice(start, start + size))
        here = where[:, start : start + size]
        assert torch.allclose(found[:, start : start + size][here], expected[here], atol=1e-5)


def test_every_linear_layer_of_the_blocks_is_packed(packed, example):
    record, out = packed
    source = open_model(example.folder, example.attention_block)
    assert [layer.name for layer in record.layers] == [source.upstream(s) for s in source.layers]
    assert all(layer.code_bits == 2.0 and layer.error < 1 for layer in record.layers)
    model = load(out)
    assert len(model.packed()) == len(record.layers)
    left = [n for n, m in model.backbone.blocks.named_modules() if isinstance(m, nn.Linear)]
    assert not left
    assert model.source.config == source.config  # a given attention block is remembered
    assert model.mask_token_id == example.mask_token_id


def test_what_is_not_packed_is_stored_as_it_was(packed, example):
    before = load_file(example.folder / "model.safetensors")
    after = load_file(packed[1] / "model.safetensors")
    weights = {f"{layer.name}.weight" for layer in packed[0].layers}
    assert set(before) - set(after) == weights
    assert all(torch.equal(after[name], before[name]) for name in set(before) - weights)


def test_the_packed_model_is_the_network_with_rounded_weights(packed, model, example):
    ours, base = load(packed[1]), load(example.folder, attention_block=example.attention_block)
    for name, module in ours.backbone.named_modules():
        if isinstance(module, QuantLinear):
            base.backbone.get_submodule(name).weight.data = module.weight.dequantize()
    ids = example.input_ids
    assert torch.allclose(ours(ids).logits, base(ids).logits, atol=1e-4)
    assert not torch.allclose(ours(ids).logits, model(ids).logits, atol=1e-2)


def test_routers_keep_their_precision(packed, example):
    model = load(packed[1], dtype=torch.bfloat16)
    for router in (m for m in model.modules() if isinstance(m, Router)):
        assert all(p.dtype == torch.float32 for p in router.parameters())
    assert torch.isfinite(model(example.input_ids).logits).all()


def test_it_generates(packed, family):
    story = quant_dllm.generate(packed[1], "w5 w6 w7 w8 w9", length=12)
    assert story.token_ids and story.calls > 0
    again = quant_dllm.generate(packed[1], "w5 w6 w7 w8 w9", length=12)
    assert again.token_ids == story.token_ids


def test_it_is_measured(packed, model, text, record_property):
    found = quant_dllm.evaluate(packed[1], model, text, sequences=4, length=LENGTH, draws=2)
    record_property("KL to the 16-bit model", found.kl)
    assert found.kl > 0 and found.nelbo > 0
    assert found.nelbo_excess is not None and 0 <= found.top1_agreement <= 1


def test_the_streamed_teacher_says_what_the_model_says(model, example):
    ids = example.input_ids
    where = torch.rand(ids.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    canvas = torch.where(where, example.mask_token_id, ids)
    teacher = Teacher(model.source, torch.device("cpu"), torch.float32, top=5)
    (found,) = teacher.targets([canvas], [where], [ids])
    expected = TopLogits.of(model.logits_at(canvas, where, ids), 5)
    assert torch.allclose(found.log_p.float(), expected.log_p.float(), atol=2e-3)  # float16


def test_its_scales_can_be_tuned(packed, model, example):
    tuned, ids = load(packed[1]), example.input_ids
    teacher = Teacher(model.source, torch.device("cpu"), torch.float32, top=20)
    settings = EndToEnd(steps=3, batch=2, rate=0.02, round=3, validate_every=1, validation=2)
    run = EndToEndTuning(tuned, teacher, settings, ids, ids, seed=0)
    assert [step.done for step in run.run()] == [1, 2, 3]
    assert len(set(run.curve)) == 4  # every update moved the model
    assert len(tuned.packed()) == len(packed[0].layers)
    assert run.validate() == pytest.approx(min(run.curve), rel=0.02, abs=1e-5)  # scales: float16


def test_every_layers_error_is_measured(packed, model, example):
    yardstick = LayerYardstick(model, example.input_ids, seed=0)
    errors = yardstick.measure(load(packed[1]))
    routed = {name for name in model.source.layers if ".experts." in name}
    assert set(model.source.layers) - routed <= set(errors) <= set(model.source.layers)
    assert all(0 < error < 1.5 for error in errors.values())


def test_a_config_that_lacks_a_number_is_refused(family, example, tmp_path):
    import shutil

    folder = shutil.copytree(example.folder, tmp_path / "broken")
    raw = json.loads((folder / "config.json").read_text())
    key = "n_layers" if "n_layers" in raw else "num_hidden_layers"
    edit(folder, **{key: None})
    with pytest.raises(quant_dllm.errors.ModelError, match=f"lacks '{key}'"):
        open_model(folder)


def test_every_layers_sensitivity_is_measured(example, text, tmp_path):
    settings = SMALL | {"precision": "sensitivity", "calibration.sequences": 4}
    job = Job.prepare(
        example.folder, Recipe.load("ladder-1-rounding").override(settings), tmp_path / "out",
        text=text, seed=0, device="cpu", mask_token_id=None,
        attention_block=example.attention_block,
    )  # fmt: skip
    found = SensitivityPass(job, 10**6, tmp_path, 1 << 20).run(lambda: None)
    assert found.keys() == set(job.source.layers)  # an expert that no token chose has one too
    for slot, table in ((slot, torch.tensor(rows)) for slot, rows in found.items()):
        assert (table >= 0).all() and (table.diff(dim=1) <= 0).all()
        assert (table > 0).all() or ".experts." in slot  # of tokens whose output nobody reads
