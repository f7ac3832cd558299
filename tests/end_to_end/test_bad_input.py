"""Wrong requests: one line that says what was found, what was wanted and what to do; exit 2."""

import socket

import pytest

from quant_dllm.cli.main import main
from tests.refusal import quantize, refused


@pytest.fixture(scope="module")
def quantized(small_model, tmp_path_factory):
    """A checkpoint that rounding alone made."""
    out = tmp_path_factory.mktemp("quantized") / "out"
    assert main(["quantize", str(small_model), "-o", str(out), "-r", "rtn-2bit"]) == 0
    return out


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
