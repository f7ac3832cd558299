"""The command line as its users see it."""

import json
import subprocess
import sys

import pytest

from quant_dllm.cli.main import main
from tests.conftest import ROUNDED, SMALL_RECIPE

SETS = [word for key, value in SMALL_RECIPE.items() for word in ("--set", f"{key}={value}")]
SMALL = ["-r", ROUNDED, *SETS]


@pytest.fixture(scope="module")
def packed(small_model, tmp_path_factory):
    out = tmp_path_factory.mktemp("cli") / "packed"
    assert main(["quantize", str(small_model), "-o", str(out), *SMALL, "--seed", "3"]) == 0
    return out


def json_of(capsys, *argv):
    assert main([str(word) for word in argv]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    return json.loads(out)


def test_quantize_prints_what_it_did(capsys, small_model, tmp_path):
    argv = ["quantize", str(small_model), "-o", str(tmp_path / "a"), "-r", "gptq-2bit", *SETS]
    assert main(argv) == 0
    out = capsys.readouterr().out
    for word in ("gptq-2bit", "2.000 codes", "peak memory", "size on disk"):
        assert word in out
    found = json_of(capsys, "quantize", small_model, "-o", tmp_path / "b", *SMALL, "--json")
    assert found["bits"]["code"] == 2.0 and found["seconds"] > 0 and found["peak_memory"] > 1e6


def test_evaluate_has_the_promised_keys(capsys, packed, small_model):
    words = ["--sequences", 3, "--length", 16, "--draws", 2, "--json"]
    found = json_of(capsys, "evaluate", packed, "--against", small_model, *words)
    promised = {"nelbo", "nelbo_stderr", "kl", "kl_by_mask_ratio", "top1_agreement", "bits"}
    assert promised <= set(found)
    assert set(found["bits"]) == {"code", "stored", "file"}
    assert list(found["kl_by_mask_ratio"]) == ["0.25", "0.5", "0.75", "1.0"]
    assert json_of(capsys, "evaluate", packed, *words)["kl"] is None
    assert main(["evaluate", str(packed), "--sequences", "3", "--length", "16"]) == 0
    assert "nats a token" in capsys.readouterr().out


def test_generate_prints_the_text_and_the_calls(capsys, packed):
    words = ["--prompt", "Once upon a time", "--length", 16, "--block-length", 8, "--steps", 8]
    found = json_of(capsys, "generate", packed, *words, "--json")
    assert found["calls"] == 8 and len(found["token_ids"]) == 16
    assert main([str(w) for w in ["generate", packed, *words]]) == 0
    out, err = capsys.readouterr()
    assert out == "Once upon a time" + found["text"] + "\n"
    assert "8 model calls" in err


def test_generate_takes_settings_of_the_sampler(capsys, packed):
    words = ["--prompt", "Once upon a time", "--length", 16, "--block-length", 8]
    words += ["--sampler", "entropy", "--threshold", 0.5, "--cfg", 0.5, "--cache", "dual"]
    found = json_of(capsys, "generate", packed, *words, "--json")
    chosen = {"remasking": "entropy", "threshold": 0.5, "guidance": 0.5, "cache": "dual"}
    assert chosen.items() <= found["sampling"].items()
    assert found["calls"] % 2 == 0  # two a step


def test_a_stream_shows_every_step(capsys, packed):
    words = ["--prompt", "Once upon a time", "--length", 8, "--block-length", 8, "--stream"]
    assert main([str(w) for w in ["generate", packed, *words]]) == 0
    out, err = capsys.readouterr()
    shown = [json.loads(line) for line in err.splitlines() if line.startswith('"')]
    assert [line.count("·") for line in shown] == list(range(7, -1, -1))
    assert out.startswith("Once upon a time")


def test_inspect_reports_the_size_on_disk(capsys, packed, small_model):
    found = json_of(capsys, "inspect", packed, "--json")
    assert found["bytes"] == sum(f.stat().st_size for f in packed.iterdir())
    assert found["seed"] == 3 and found["quantized"] and len(found["layers"]) == 14
    assert main(["inspect", str(packed)]) == 0
    out = capsys.readouterr().out
    assert str(found["bytes"]) in out and "blocks.1.ff_out" in out
    assert main(["inspect", str(small_model)]) == 0
    assert "quantized" in capsys.readouterr().out


def test_verbose_logs_a_line_a_layer(packed, small_model, tmp_path):
    command = [sys.executable, "-m", "quant_dllm.cli.main", "-v", "quantize", str(small_model)]
    done = subprocess.run(
        [*command, "-o", str(tmp_path / "o"), *SMALL, "--json"], capture_output=True, text=True
    )
    assert done.returncode == 0
    lines = [line for line in done.stderr.splitlines() if line.startswith("layer=")]
    assert len(lines) == 14 and "error=" in lines[0] and "orders=2:3" in lines[0]
    json.loads(done.stdout)


def test_help_is_quick_and_complete(capsys):
    for verb in ("quantize", "evaluate", "generate", "inspect", "demo"):
        assert main([verb, "--help"]) == 0
    assert main([]) == 0
    assert main(["--version"]) == 0
    assert "quant-dllm 0." in capsys.readouterr().out
