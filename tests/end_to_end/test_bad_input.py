"""Wrong requests: one line that says what was found, what was wanted and what to do; exit 2."""

import json
import shutil
import socket

import pytest
import torch
from safetensors.torch import load_file, save_file

from quant_dllm.cli.main import main
from tests.conftest import GOLDEN, ROUNDED, SMALL_RECIPE

SETS = [word for key, value in SMALL_RECIPE.items() for word in ("--set", f"{key}={value}")]
SMALL = ["-r", ROUNDED, *SETS]


def refused(capsys, tmp_path, argv, *messages):
    """Run the command line; it must end with 2 and one line, and leave nothing new behind."""
    before = sorted(tmp_path.iterdir())
    assert main([str(word) for word in argv]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    progress = ("ABMP moves", "quantizing by ", "done=")  # never that a model was loaded
    said = [line for line in err.splitlines() if not line.startswith(progress)]
    assert len(said) == 1, err
    for message in messages:
        assert message in err, err
    assert sorted(tmp_path.iterdir()) == before
    return err


def quantize(model, tmp_path, *words):
    return ["quantize", model, "-o", tmp_path / "out", *SMALL, *words]


@pytest.fixture(scope="module")
def quantized(small_model, tmp_path_factory):
    """A checkpoint that rounding alone made."""
    out = tmp_path_factory.mktemp("quantized") / "out"
    assert main(["quantize", str(small_model), "-o", str(out), "-r", "rtn-2bit"]) == 0
    return out


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


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-r", "gptq-2bt"], "Did you mean 'gptq-2bit'"),
        (["--set", "quantizer.round=3"], "Did you mean 'rounds'"),
        (["--set", "quantiser.rounds=3"], "Did you mean 'quantizer'"),
        (["--set", "quantizer=dqa"], "Did you mean 'daq'"),
        (["--set", "precision.ratio"], "is not path=value"),
        (["--set", "precision.bits=2.5"], "precision.bits is 2.5"),
        (["--set", "precision.bits=1"], "some blocks would have 0 bits"),
        (["--set", "precision.ratio=0.9"], "must be in [0, 0.5]"),
        (["--set", "calibration.sequences=100000"], "100000 are wanted"),
        (["--calibration", "nowhere.txt"], "cannot be read"),
        (["--device", "gpu"], "Device 'gpu' cannot be used"),
        (["--mask-token-id", "99999"], "is no row of"),
        (["--sed", "1"], "--seed"),
        (["--seed", "-1"], "--seed"),
        (["--seed", "99999999999999999999"], "--seed"),
    ],
)
def test_a_wrong_word(capsys, tmp_path, small_model, words, message):
    refused(capsys, tmp_path, quantize(small_model, tmp_path, *words), message)


def test_a_verb_that_does_not_exist(capsys, tmp_path):
    refused(capsys, tmp_path, ["quantise", "tiny"], "Did you mean 'quantize'")


def test_a_calibration_text_that_is_too_short(capsys, tmp_path, small_model):
    (tmp_path / "short.txt").write_text("Once upon a time.")
    words = ["--calibration", tmp_path / "short.txt"]
    refused(capsys, tmp_path, quantize(small_model, tmp_path, *words), "6 are wanted")


def test_no_calibration_text_at_all(capsys, tmp_path, broken_model):
    with (broken_model / "tokenizer.json").open("a") as file:
        file.write(" ")  # no longer tiny's own
    refused(capsys, tmp_path, quantize(broken_model, tmp_path), "Pass --calibration FILE")
    refused(capsys, tmp_path, ["evaluate", broken_model], "--text FILE")


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


def test_an_output_that_is_there(capsys, tmp_path, small_model):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("mine")
    refused(capsys, tmp_path, quantize(small_model, tmp_path), "is there already")
    assert (tmp_path / "out" / "precious").read_text() == "mine"


def test_no_space_left(capsys, tmp_path, small_model, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    told = ("No space left on device", "go on with: quant-dllm resume")
    assert main([str(word) for word in quantize(small_model, tmp_path)]) == 2
    err = capsys.readouterr().err.splitlines()[-1]
    assert all(message in err for message in told)
    assert [path.name for path in tmp_path.iterdir()] == [".out.unfinished"]
    monkeypatch.undo()
    assert main(["resume", str(tmp_path / "out")]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--length", "12", "--block-length", "8"], "no multiple of block length"),
        (["--length", "16", "--steps", "5", "--block-length", "8"], "do not spread over"),
        (["--temperature", "-1"], "0 or more is wanted"),
        (["--length", "640"], "was trained on 64 in all"),
        (["--sampler", "entropie"], "Did you mean 'entropy'"),
        (["--threshold", "2"], "a probability above 0"),
        (["--cache", "exact", "--length", "8"], "Choose none, prefix or dual"),
        (["--chat"], "has no chat template"),
        (["--steps", "0"], "--steps"),
        (["--block-length", "0"], "--block-length"),
        (["--length", "0"], "--length"),
        (["--temperature", "inf"], "temperature is inf; 0 or more"),
        (["--prompt", ""], "The prompt is empty"),
        (["--device", "gpu"], "Device 'gpu' cannot be used"),
        (["--mask-token-id", "99999"], "is no row of"),
    ],
)
def test_a_generation_that_cannot_be(capsys, tmp_path, small_model, words, message):
    refused(capsys, tmp_path, ["generate", small_model, "--prompt", "Once", *words], message)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--length", "0"], "found '0'"),
        (["--length", "65"], "was trained on 64 in all"),
        (["--length", "12", "--block-length", "8"], "no multiple of block length"),
        (["--steps", "0"], "--steps"),
        (["--temperature", "-1"], "0 or more is wanted"),
        (["--system", "Be brief."], "Leave it out"),
        (["--seed", "-1"], "--seed"),
    ],
)
def test_a_talk_that_cannot_be(capsys, tmp_path, small_model, words, message):
    refused(capsys, tmp_path, ["chat", small_model, *words], message)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--port", "99999"], "99999 cannot be had"),
        (["--host", "nowhere.invalid"], "Choose another with --port or --host"),
        (["--api-key", ""], "would let everybody in"),
        (["--queue", "-1"], "--queue"),
        (["--device", "gpu"], "Device 'gpu' cannot be used"),
        (["--mask-token-id", "99999"], "is no row of"),
    ],
)
def test_a_server_that_cannot_be(capsys, tmp_path, small_model, words, message):
    pytest.importorskip("fastapi")
    refused(capsys, tmp_path, ["serve", small_model, *words], message)


def test_a_port_that_is_taken(capsys, tmp_path, small_model):
    pytest.importorskip("fastapi")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused(capsys, tmp_path, ["serve", small_model, "--port", port], f"{port} cannot be had")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["plan", "tiny", "--seed", "-1"], "found '-1'"),
        (["compare", "tiny", "-r", "rtn-2bit", "--seeds", "0"], "--seeds"),
        (["bench", "tiny", "--length", "0"], "--length"),
        (["evaluate", "tiny", "--sequences", "0"], "--sequences"),
        (["report", "tiny", "--length", "0"], "--length"),
        (["generate", "tiny", "--prompt", "Once", "--length", "many"], "found 'many'"),
    ],
)
def test_a_number_that_means_nothing(capsys, tmp_path, words, message):
    refused(capsys, tmp_path, words, message, "quant-dllm " + words[0])


def test_a_demo_where_something_is(capsys, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious").write_text("mine")
    refused(capsys, tmp_path, ["demo", "--out", tmp_path / "mine"], "is there already")
    refused(capsys, tmp_path, ["demo", "--out", tmp_path / "mine" / "precious"], "already")
    refused(capsys, tmp_path, ["demo", "--out", tmp_path / "mine" / "precious" / "x"], "a file")
    refused(capsys, tmp_path, ["demo", "--out", "/proc/none/x"], "could not be made")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--length", "640"], "was trained on 64 in all"),
        (["--temperature", "-1"], "0 or more is wanted"),
        (["--prompt", ""], "The prompt is empty"),
        (["--text", "nowhere.txt", "--length", "8"], "cannot be read"),
        (["--against", "nowhere"], "Name the 16-bit model with --against"),
        (["--compared", "nowhere"], "holds no records"),
    ],
)
def test_a_report_that_cannot_be(capsys, tmp_path, quantized, words, message):
    refused(capsys, tmp_path, ["report", quantized, *words], message)


def test_models_of_two_vocabularies(capsys, tmp_path, small_model):
    golden = shutil.copytree(GOLDEN / "llada", tmp_path / "golden")
    words = ["evaluate", small_model, "--against", golden, "--sequences", "2", "--length", "16"]
    refused(capsys, tmp_path, words, "two models of one vocabulary")
