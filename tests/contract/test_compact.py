"""Every family with coded scales, and its embedding and head packed, where they can be."""

import json
import logging

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel

import quant_dllm
from quant_dllm.embedding import QuantEmbedding
from quant_dllm.models.load import load
from quant_dllm.models.source import open_model
from quant_dllm.packed import Packed
from quant_dllm.pipeline.teacher import Teacher
from quant_dllm.pipeline.tune import EndToEndTuning
from quant_dllm.tuning.end_to_end import EndToEnd
from tests.contract.conftest import SMALL

COMPACT = SMALL | {
    "quantizer.scales": 6, "quantizer.refinements": 1, "outside": "grouped", "outside.bits": 4,
    "outside.block_size": 16, "outside.finer": 0.1, "outside.behind": True, "outside.drift": 1.0,
    "block_tuning": "block-by-block", "block_tuning.passes": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def compact(example, text, tmp_path_factory):
    out = tmp_path_factory.mktemp("compact") / "model"
    record = quant_dllm.quantize(
        example.folder, out, "ladder-1-rounding", settings=COMPACT, calibration=text,
        attention_block=example.attention_block,
    )  # fmt: skip
    return record, out


def test_the_folder_holds_what_the_record_says(compact, model, family, example):
    record, out = compact
    stored, network = load_file(out / "model.safetensors"), model.backbone
    assert [layer.name for layer in record.outside] == [
        family.upstream(f"{slot}.weight").removesuffix(".weight") for slot in network.outside
    ]
    assert {layer.kind for layer in record.layers} == {"compact"}
    for layer in (*record.layers, *record.outside):
        tensors = {n: t for n, t in stored.items() if n.rpartition(".")[0] == layer.name}
        assert f"{layer.name}.weight" not in tensors
        bits = 8 * sum(t.nbytes for n, t in tensors.items() if not n.endswith("bias"))
        assert bits / (layer.shape[0] * layer.shape[1]) == pytest.approx(layer.stored_bits)
    loaded = load(out)
    assert loaded.bits().stored == pytest.approx(record.bits.stored)
    assert len(loaded.packed()) == len(record.layers)
    manifest = json.loads((out / "quant_dllm.json").read_text())
    assert manifest["recipe"]["outside"] == {
        "name": "grouped",
        "bits": 4,
        "block_size": 16,
        "finer": 0.1,
        "behind": True,
        "drift": 1.0,
    }
    assert {layer.kind for layer in record.outside} <= {"finer"}


def test_the_model_is_the_network_with_rounded_weights(compact, example):
    ours = load(compact[1])
    base = load(example.folder, attention_block=example.attention_block)
    for name, module in ours.backbone.named_modules():
        if isinstance(module, Packed):
            base.backbone.get_submodule(name).weight.data = module.weight.dequantize()
    ids = example.input_ids
    logits = ours(ids).logits
    assert torch.allclose(logits, base(ids).logits, atol=1e-4)
    assert torch.allclose(ours.unpack()(ids).logits, logits, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_transformers_gives_the_same_logits(compact, example, dtype, tmp_path):
    ours = load(compact[1], dtype=dtype)
    hosted = AutoModel.from_pretrained(compact[1], dtype=dtype)
    expected = ours(example.input_ids).logits
    assert expected.dtype == dtype
    assert torch.equal(hosted(example.input_ids).logits, expected)
    hosted.save_pretrained(tmp_path)
    assert torch.equal(load(tmp_path, dtype=dtype)(example.input_ids).logits, expected)


def test_inspect_shows_it(compact, capsys):
    from quant_dllm.cli.inspect import inspect

    inspect(str(compact[1]))
    shown = capsys.readouterr().out
    assert "compact, scales of 6 bits" in shown and "of the file" in shown
    for layer in compact[0].outside:
        assert f"{layer.name} {layer.code_bits:.3g} bits, {layer.stored_bits:.3f} stored" in shown
    assert compact[0].outside or "as the model has them" in shown


def test_it_generates_and_is_measured(compact, model, text):
    assert quant_dllm.generate(compact[1], "w5 w6 w7 w8 w9", length=4).token_ids
    found = quant_dllm.evaluate(compact[1], model, text, sequences=2, length=32, draws=1)
    assert found.kl > 0


def test_its_scales_can_be_tuned(compact, model, example):
    tuned, ids = load(compact[1]), example.input_ids
    teacher = Teacher(model.source, torch.device("cpu"), torch.float32, top=20)
    settings = EndToEnd(steps=2, batch=2, rate=0.02, round=2, validate_every=1, validation=2)
    run = EndToEndTuning(tuned, teacher, settings, ids, ids, seed=0)
    assert [step.done for step in run.run()] == [1, 2]
    assert {layer.kind.kind for layer in tuned.packed()} == {"compact"}
    assert run.validate() == pytest.approx(min(run.curve), rel=0.25, abs=1e-3)  # scales: six bits


def test_a_network_of_transformers_says_that_it_keeps_its_embedding(
    family, example, text, tmp_path, caplog
):
    if family.name != "modernbert":
        pytest.skip("its embedding can be packed")
    with caplog.at_level(logging.WARNING, "quant_dllm"):
        settings = SMALL | {"outside": "grouped"}
        record = quant_dllm.quantize(
            example.folder, tmp_path / "out", "rtn-2bit", settings=settings, calibration=text
        )
    assert "Embedding and head of" in caplog.text and not record.outside
    assert not open_model(tmp_path / "out").empty().outside


def test_a_tied_head_is_stored_once(compact, model):
    network = load(compact[1]).backbone
    if not model.backbone.copies or not model.backbone.outside:
        pytest.skip("its head is a matrix of its own, or not packed")
    assert isinstance(network.embed, QuantEmbedding) and len(compact[0].outside) == 1
