"""Models that are nowhere, broken or of another kind: one line that says so; exit 2."""

import json
import shutil

import torch
from safetensors.torch import load_file, save_file

from quant_dllm.cli.main import main
from tests.conftest import GOLDEN
from tests.refusal import quantize, refused


def edit(folder, **changes):
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def test_a_model_that_is_nowhere(capsys, tmp_path):
    refused(capsys, tmp_path, quantize("no-such-model", tmp_path), "is not a model", "'tiny'")
    refused(capsys, tmp_path, ["inspect", tmp_path], "has no config.json")


def test_a_hub_id_without_a_network(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refused(capsys, tmp_path, ["inspect", "nobody/no-such-model"], "could not be had from the Hub")


def test_missing_weights(capsys, tmp_path, broken_model):
    (broken_model / "model.safetensors").unlink()
    refused(capsys, tmp_path, quantize(broken_model, tmp_path), "lacks model.safetensors")


def test_truncated_weights(capsys, tmp_path, broken_model):
    path = broken_model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    refused(capsys, tmp_path, quantize(broken_model, tmp_path), "not a whole safetensors file")
    refused(capsys, tmp_path, ["evaluate", broken_model], "not a whole safetensors file")


def test_a_missing_tensor(capsys, tmp_path, broken_model):
    path = broken_model / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.transformer.blocks.1.ff_out.weight"]
    save_file(tensors, path)
    refused(capsys, tmp_path, quantize(broken_model, tmp_path), "no tensor", "blocks.1.ff_out")


def test_a_tensor_too_many(capsys, tmp_path, broken_model):
    path = broken_model / "model.safetensors"
    save_file(load_file(path) | {"model.vision.weight": torch.zeros(3)}, path)
    refused(capsys, tmp_path, ["evaluate", broken_model], "model.vision.weight")


def test_weights_of_another_shape(capsys, tmp_path, broken_model):
    edit(broken_model, mlp_hidden_size=64)
    refused(capsys, tmp_path, ["evaluate", broken_model], "shape", "do not belong together")
    refused(capsys, tmp_path, quantize(broken_model, tmp_path), "shape")


def test_a_config_that_is_no_json(capsys, tmp_path, broken_model):
    (broken_model / "config.json").write_text('{"architectures": [')
    refused(capsys, tmp_path, quantize(broken_model, tmp_path), "config.json cannot be read")


def test_a_config_without_a_key(capsys, tmp_path, broken_model):
    edit(broken_model, d_model=None)
    refused(capsys, tmp_path, quantize(broken_model, tmp_path), "lacks 'd_model'")


def test_an_unknown_architecture(capsys, tmp_path, broken_model):
    edit(broken_model, architectures=["LLaDAModelLMs"])
    refused(capsys, tmp_path, quantize(broken_model, tmp_path), "Did you mean 'LLaDAModelLM'")
    edit(broken_model, architectures=["GPT2LMHeadModel"], model_type="gpt2")
    refused(capsys, tmp_path, quantize(broken_model, tmp_path), "GPT2LMHeadModel", "not known")
    edit(broken_model, architectures=["LlamaForCausalLM"], mask_token_id=None)
    refused(capsys, tmp_path, quantize(broken_model, tmp_path), "an autoregressive Llama")


def test_weights_that_are_not_finite(capsys, tmp_path, broken_model):
    path = broken_model / "model.safetensors"
    tensors = load_file(path)
    tensors["model.transformer.blocks.1.up_proj.weight"][3, 4] = torch.nan
    save_file(tensors, path)
    refused(capsys, tmp_path, quantize(broken_model, tmp_path), "blocks.1.up_proj.weight", "NaN")


def test_an_already_quantized_model(capsys, tmp_path, small_model):
    assert main([str(w) for w in quantize(small_model, tmp_path)]) == 0
    capsys.readouterr()
    refused(capsys, tmp_path, quantize(tmp_path / "out", tmp_path / "sub"), "quantized already")


def test_a_model_that_somebody_else_quantized(capsys, tmp_path, broken_model):
    edit(broken_model, quantization_config={"quant_method": "gptq"})
    refused(capsys, tmp_path, quantize(broken_model, tmp_path), "quantized already")
    refused(capsys, tmp_path, ["evaluate", broken_model], "'gptq'", "Use the 16-bit model")


def test_a_format_from_the_future(capsys, tmp_path, small_model):
    assert main([str(w) for w in quantize(small_model, tmp_path)]) == 0
    capsys.readouterr()
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    config["quantization_config"]["format_version"] = 99
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    refused(capsys, tmp_path, ["evaluate", tmp_path / "out"], "format version 99", "pip install -U")


def test_a_packed_checkpoint_with_a_hole(capsys, tmp_path, small_model):
    assert main([str(w) for w in quantize(small_model, tmp_path)]) == 0
    capsys.readouterr()
    path = tmp_path / "out" / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.transformer.blocks.0.q_proj.row_scales"]
    save_file(tensors, path)
    refused(capsys, tmp_path, ["evaluate", tmp_path / "out"], "lacks", "q_proj.row_scales")


def test_a_mask_token_that_nobody_names(capsys, tmp_path, broken_model):
    edit(broken_model, mask_token_id=None)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (broken_model / name).read_text()
        (broken_model / name).write_text(text.replace("<|mdm_mask|>", "<|other|>"))
    text = tmp_path / "text.txt"
    text.write_text("Once upon a time there was a dog. " * 100)
    words = quantize(broken_model, tmp_path, "--calibration", text)
    refused(capsys, tmp_path, words, "--mask-token-id", "<|mdm_mask|>")
    assert main([str(w) for w in [*words, "--mask-token-id", "7"]]) == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["mask_token_id"] == 7


def test_a_model_without_a_tokenizer(capsys, tmp_path, broken_model):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (broken_model / name).unlink()
    (tmp_path / "text.txt").write_text("a b c " * 500)
    words = ["--calibration", tmp_path / "text.txt"]
    refused(capsys, tmp_path, quantize(broken_model, tmp_path, *words), "has no tokenizer")
    refused(capsys, tmp_path, ["generate", broken_model, "--prompt", "a"], "has no tokenizer")


def test_models_of_two_vocabularies(capsys, tmp_path, small_model):
    golden = shutil.copytree(GOLDEN / "llada", tmp_path / "golden")
    words = ["evaluate", small_model, "--against", golden, "--sequences", "2", "--length", "16"]
    refused(capsys, tmp_path, words, "two models of one vocabulary")
