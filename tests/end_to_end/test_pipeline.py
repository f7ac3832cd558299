"""A model in, a packed checkpoint out, and that checkpoint loaded, measured, made to write."""

import json

import pytest
import torch
from safetensors.torch import load_file

import quant_dllm
from quant_dllm.checkpoint.folder import Folder
from quant_dllm.linear import QuantLinear
from quant_dllm.models.source import open_model
from quant_dllm.record import RunRecord
from tests.conftest import ROUNDED, SMALL_RECIPE, save_model

RECIPES = [
    ROUNDED,
    "quant-dllm-2bit-paper",
    "quant-dllm-2bit-release",
    "gptq-2bit",
    "rtn-2bit",
]


@pytest.fixture(scope="module", params=RECIPES)
def quantized(request, small_model, tmp_path_factory):
    out = tmp_path_factory.mktemp("quantized") / request.param
    settings = SMALL_RECIPE | ({"precision.ratio": 0.34} if request.param[0] not in "gr" else {})
    if "release" in request.param:
        settings["calibration.windows"] = "long-documents"
    record = quant_dllm.quantize(small_model, out, request.param, settings=settings)
    return record, out


def test_every_linear_layer_of_the_blocks_is_packed_at_the_budget(quantized, small_model):
    record, _ = quantized
    source = open_model(small_model)
    names = {source.upstream(slot) for slot in source.layers}
    assert {layer.name for layer in record.layers} == names
    assert all(layer.code_bits == 2.0 for layer in record.layers)
    assert record.bits.code == 2.0 < record.bits.stored < record.bits.file


def test_loading_gives_the_weights_that_were_packed(quantized, small_model):
    record, out = quantized
    model = quant_dllm.load(out)
    packed = [m for m in model.modules() if isinstance(m, QuantLinear)]
    assert len(packed) == len(record.layers) == 14
    base = quant_dllm.load(small_model)
    for layer in packed:
        assert torch.isfinite(layer.weight.dequantize()).all()
    # a 16-bit network with the dequantized weights answers the same
    for name, module in model.backbone.named_modules():
        if isinstance(module, QuantLinear):
            base.backbone.get_submodule(name).weight.data = module.weight.dequantize()
    ids = torch.arange(24).view(2, 12)
    assert torch.allclose(model(ids).logits, base(ids).logits, atol=1e-5)


def test_the_file_holds_no_float_copy_of_a_packed_weight(quantized):
    _, out = quantized
    for name, tensor in load_file(out / "model.safetensors").items():
        wide = tensor.is_floating_point() and tensor.ndim == 2
        kept = ("wte", "transformer.ff_out", "scales")
        assert not wide or any(word in name for word in kept), name


def test_the_manifest_is_the_record_and_sizes_are_those_on_disk(quantized):
    record, out = quantized
    manifest = json.loads((out / "quant_dllm.json").read_text())
    assert RunRecord.from_dict(manifest) == record
    on_disk = (out / "model.safetensors").stat().st_size
    parameters = sum(
        p.numel() for p in quant_dllm.load(open_model("tiny").folder.path).parameters()
    )
    assert parameters != record.parameters  # of this model, not of tiny
    assert record.bits.file == 8 * on_disk / record.parameters
    assert quant_dllm.load(out).bits() == record.bits
    assert Folder(out).total_bytes == sum(f.stat().st_size for f in out.iterdir())
    stored = sum(t.nbytes for n, t in load_file(out / "model.safetensors").items()
                 if n.rpartition(".")[2] not in ("weight",))  # fmt: skip
    weights = sum(layer.shape[0] * layer.shape[1] for layer in record.layers)
    assert record.bits.stored == pytest.approx(8 * stored / weights)


def test_calibrated_recipes_note_what_they_were_shown(quantized):
    record, _ = quantized
    if record.recipe["name"] == "rtn-2bit":
        assert record.calibration is None
        assert all(layer.error is None for layer in record.layers)
    else:
        assert record.calibration["sequences"] == 6 and record.calibration["length"] == 32
        copies = 4 if "paper" in record.recipe["name"] else 1
        assert all(layer.tokens == 6 * 32 * copies for layer in record.layers)
        assert all(0 < layer.error < 1 for layer in record.layers)


def test_it_is_measured_and_writes(quantized, small_model):
    _, out = quantized
    found = quant_dllm.evaluate(out, small_model, sequences=4, length=32, draws=2)
    assert found.kl > 0 and set(found.kl_by_mask_ratio) == {"0.25", "0.5", "0.75", "1.0"}
    assert 0 <= found.top1_agreement <= 1
    again = quant_dllm.evaluate(out, small_model, sequences=4, length=32, draws=2)
    assert again.nelbo == found.nelbo and again.kl == found.kl
    story = quant_dllm.generate(out, "Once upon a time", length=16, block_length=8, temperature=1.0)
    assert story.calls == 16 and len(story.token_ids) == 16
    same = quant_dllm.generate(out, "Once upon a time", length=16, block_length=8, temperature=1.0)
    assert same.token_ids == story.token_ids


def test_equal_seeds_give_equal_bytes(small_model, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        quant_dllm.quantize(small_model, tmp_path / name, ROUNDED, settings=SMALL_RECIPE, seed=seed)
    a, b, c = ((tmp_path / n / "model.safetensors").read_bytes() for n in "abc")
    assert a == b != c


def test_a_model_against_itself_diverges_nowhere(small_model):
    found = quant_dllm.evaluate(small_model, small_model, sequences=3, length=16, draws=2)
    assert found.kl == pytest.approx(0, abs=1e-6)
    assert found.top1_agreement == 1.0 and found.nelbo_excess == 0.0


def test_the_stream_quantizes_what_a_whole_model_would_give(small_model, tmp_path):
    """One layer by hand: the statistics of the second block come from the quantized first."""
    quant_dllm.quantize(small_model, tmp_path / "q", ROUNDED, settings=SMALL_RECIPE, seed=3)
    from quant_dllm.pipeline.job import Job
    from quant_dllm.recipe import Recipe
    from quant_dllm.statistics.layer import LayerStatistics

    recipe = Recipe.load(ROUNDED).override(SMALL_RECIPE)
    job = Job.prepare(
        small_model, recipe, tmp_path / "x", text=None, seed=3, device="cpu", mask_token_id=None
    )
    base, packed = quant_dllm.load(small_model), quant_dllm.load(tmp_path / "q")
    base.backbone.blocks[0] = packed.backbone.blocks[0]
    seen = []
    base.backbone.blocks[1].attention.q.register_forward_pre_hook(lambda _, a: seen.append(a[0]))
    with torch.no_grad():
        base(job.views[0])
    stats = LayerStatistics.gather(seen, 0.01)
    weight = base.backbone.blocks[1].attention.q.weight
    bits = job.precision.allocate(weight, stats)
    by_hand = job.quantizer.quantize(weight, stats, bits, 16)
    ours = packed.backbone.blocks[1].attention.q.weight
    same = (by_hand.planes == ours.planes).float().mean()
    assert same > 0.98  # sums in another order may flip a sign that lies on the fence


def test_bfloat16_models_are_read_and_kept_as_they_are(tmp_path):
    from tests.conftest import CONFIG

    model = save_model(tmp_path / "bf16", CONFIG, dtype=torch.bfloat16)
    quant_dllm.quantize(model, tmp_path / "q", "rtn-2bit", settings={"precision.block_size": 16})
    tensors = load_file(tmp_path / "q" / "model.safetensors")
    assert tensors["model.transformer.wte.weight"].dtype == torch.bfloat16
    assert quant_dllm.load(tmp_path / "q", dtype=torch.bfloat16)(torch.arange(8)[None]).logits.dtype
