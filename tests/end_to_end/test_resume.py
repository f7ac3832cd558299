"""A run that was killed, stopped or cut off goes on, and ends in the same bytes."""

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import kills
from quant_dllm.cli.launch import parse_size
from quant_dllm.cli.main import main
from quant_dllm.errors import CheckpointError, RequestError
from quant_dllm.pipeline.identity import difference
from quant_dllm.pipeline.journal import folder_of


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    """A model, and the digests of a run of it that was never stopped."""
    folder = tmp_path_factory.mktemp("kills")
    model = kills.make_model(folder / "model")
    kills.run(model, folder / "unbroken")
    return model, kills.digests(folder / "unbroken")


@pytest.mark.parametrize(
    ("phase", "number"),
    [
        ("embedding", 1),
        ("rounding", 8),
        ("half a file", 20),
        ("saving states", 1),
        ("saving a block", 2),
        ("final save", 0),
        ("removing what was saved", 2),
    ],
)
def test_a_killed_run_goes_on_to_the_same_bytes(ready, tmp_path, phase, number):
    model, wanted = ready
    out = tmp_path / "out"
    assert kills.kill_in(phase, number, model, out) == -signal.SIGKILL
    result = kills.go_on(model, out, wanted)
    assert result["equal"], result


def test_broken_disks_models_and_saved_files_are_one_line_or_healed(ready, tmp_path):
    model, _wanted = ready
    shutil.copytree(model, tmp_path / "model")
    shutil.copytree(model.parent / "unbroken", tmp_path / "unbroken")
    found = list(kills.hostile(tmp_path / "model", tmp_path))
    assert all(record["equal"] is not False for record in found), found
    reasons = {record["moment"]: record["resumed"] for record in found}
    assert "is not what was saved" in reasons["a flipped byte in a block"]
    assert reasons["a flipped byte in a layer"] == "exit 0"  # it is made again
    assert "model.model.safetensors was" in reasons["a flipped byte in the model"]
    assert "is being written by process" in reasons["two runs into one folder"]
    assert all("\n" not in reason for reason in reasons.values())


def test_a_changed_input_is_refused_with_the_difference(ready, tmp_path, capsys):
    model, _ = ready
    out = tmp_path / "out"
    assert kills.kill_in("rounding", 9, model, out) == -signal.SIGKILL
    words = ["quantize", str(model), "-o", str(out), "--calibration", str(model / kills.TEXT)]
    for key, value in (kills.SETTINGS | {"quantizer.emphasis": 2.0}).items():
        words += ["--set", f"{key}={value}"]
    before = sorted(folder_of(out).iterdir())
    assert main([*words, "--seed", "4"]) == 2
    said = capsys.readouterr().err
    assert "recipe.quantizer.emphasis was 1.0, is 2.0" in said and "seed was 0, is 4" in said
    assert len(said.splitlines()) == 1
    assert sorted(folder_of(out).iterdir()) == before


def test_resume_needs_nothing_but_the_name(ready, tmp_path, capsys):
    model, wanted = ready
    out = tmp_path / "out"
    assert main(["resume", str(out)]) == 2
    assert "was not begun" in capsys.readouterr().err
    assert kills.kill_in("rounding", 9, model, out) == -signal.SIGKILL
    assert main(["resume", str(out), "--max-memory", "1KB", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["out"] == str(out)
    assert kills.digests(out) == wanted and not kills.litter(out)
    assert main(["resume", str(out)]) == 2
    assert "is finished" in capsys.readouterr().err


def test_the_first_signal_saves_and_exits_75(ready, tmp_path):
    model, wanted = ready
    out = tmp_path / "out"
    slow = kills.counting("rounding", lambda _: time.sleep(0.2))
    child = kills.forked(lambda: kills.run(model, out, slow))
    while not list(folder_of(out).glob("layer-*.json")):
        time.sleep(0.02)
    os.kill(child, signal.SIGTERM)
    assert kills.wait(child) == 75
    assert kills.go_on(model, out, wanted)["equal"]


def test_random_moments(ready, tmp_path):
    model, wanted = ready
    dice = random.Random(0)
    for attempt in range(3):
        out = tmp_path / f"out{attempt}"
        kills.kill_after(dice.uniform(0.1, 1.5), model, out)
        assert kills.go_on(model, out, wanted)["equal"]


def test_a_difference_is_readable():
    old = {"seed": 0, "model": {"a": "0" * 64}, "recipe": {"x": 1}}
    assert difference(old, old) == ""
    assert difference(old, old | {"seed": 1}) == "seed was 0, is 1"
    found = difference(old, {"seed": 0, "model": {"a": "1" * 64, "b": "2"}, "recipe": {}})
    assert "model.a was 000000000000…, is 111111111111…" in found
    assert "recipe.x was 1, is absent" in found


def test_sizes():
    assert parse_size(None) is None
    assert parse_size("8GB") == 8_000_000_000 and parse_size("1.5M") == 1_500_000
    with pytest.raises(RequestError, match="no size"):
        parse_size("much")


def test_a_checkpoint_of_somebody_else_stays(ready, tmp_path):
    model, _ = ready
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").touch()
    with pytest.raises(CheckpointError, match="is there already"):
        kills.run(model, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
