"""A run that was killed, stopped or cut off goes on, and ends in the same bytes."""

import json
import random
import shutil
import signal
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import broken
import kills
import moments
import runs
from quant_dllm.cli.launch import parse_size
from quant_dllm.cli.main import main
from quant_dllm.errors import CheckpointError, RequestError
from quant_dllm.pipeline.identity import difference
from quant_dllm.pipeline.journal import folder_of


@pytest.fixture(scope="module")
def ready(tmp_path_factory, unchecked):
    """A model, the digests of a run of it that was never stopped, and how long a run takes."""
    folder = tmp_path_factory.mktemp("kills")
    model = runs.make_model(folder / "model")
    runs.run(model, folder / "unbroken")
    return model, runs.digests(folder / "unbroken"), kills.duration(model, folder / "timed")


@pytest.mark.parametrize(
    ("phase", "number"),
    [
        ("embedding", 1),
        ("rounding", 8),
        ("half a file", 20),
        ("saving states", 1),
        ("saving a block", 1),
        ("looking at the head", 0),
        ("final save", 0),
        ("writing the page", 0),
        ("removing what was saved", 2),
    ],
)
def test_a_killed_run_goes_on_to_the_same_bytes(ready, tmp_path, phase, number):
    model, wanted, _ = ready
    out = tmp_path / "out"
    assert moments.kill_in(phase, number, model, out) == -signal.SIGKILL
    result = runs.go_on(model, out, wanted)
    assert result["equal"], result


def test_a_full_disk_is_one_line_and_the_run_goes_on(ready, tmp_path):
    model, wanted, _ = ready
    found = list(broken.full_disk(model, tmp_path, wanted))
    if found[0]["equal"] is None:
        pytest.skip("no file system may be mounted here")
    assert all(record["equal"] for record in found), found
    assert all("could not be written: " in record["refused"] for record in found)
    assert all("\n" not in record["refused"] for record in found)
    assert len({record["found"] for record in found}) == len(broken.DISKS)  # full at other moments


def test_broken_files_are_one_line_or_healed(ready, tmp_path):
    model, wanted, _ = ready
    shutil.copytree(model, tmp_path / "model")
    found = list(broken.broken_files(tmp_path / "model", tmp_path, wanted))
    assert all(record["equal"] for record in found), found
    reasons = {record["moment"]: record["resumed"] for record in found}
    assert reasons.pop("a flipped byte in a layer") == "exit 0"  # it is made again
    assert "model.model.safetensors was" in reasons.pop("a flipped byte in the model")
    assert "is not a whole safetensors file" in reasons.pop("a truncated shard of the model")
    assert all("is not what was saved" in reason for reason in reasons.values()), reasons
    assert all("\n" not in record["resumed"] for record in found)


def test_a_second_run_into_one_folder_is_refused(ready, tmp_path):
    model, wanted, _ = ready
    (record,) = broken.two_runs(model, tmp_path, wanted)
    assert record["equal"] and "is being written by process" in record["resumed"]


def test_one_signal_saves_two_end_at_once(ready, tmp_path):
    model, wanted, _ = ready
    found = list(broken.signals(model, tmp_path, wanted))
    assert all(record["equal"] for record in found), found
    assert [record["moment"].partition(": ")[2] for record in found] == [
        "exit 75", "exit 75", "exit -15"
    ]  # fmt: skip


def test_a_changed_input_is_refused_with_the_difference(ready, tmp_path, capsys):
    model, *_ = ready
    out = tmp_path / "out"
    assert moments.kill_in("rounding", 9, model, out) == -signal.SIGKILL
    words = ["quantize", str(model), "-r", runs.ROUNDED, "-o", str(out)]
    words += ["--calibration", str(model / runs.TEXT)]
    for key, value in (runs.settings() | {"quantizer.emphasis": 2.0}).items():
        words += ["--set", f"{key}={value}"]
    before = sorted(folder_of(out).iterdir())
    assert main([*words, "--seed", "4"]) == 2
    said = capsys.readouterr().err
    assert "recipe.quantizer.emphasis was 1.0, is 2.0" in said and "seed was 0, is 4" in said
    assert len(said.splitlines()) == 1
    assert sorted(folder_of(out).iterdir()) == before


def test_resume_needs_nothing_but_the_name(ready, tmp_path, capsys):
    model, wanted, _ = ready
    out = tmp_path / "out"
    assert main(["resume", str(out)]) == 2
    assert "was not begun" in capsys.readouterr().err
    assert moments.kill_in("rounding", 9, model, out) == -signal.SIGKILL
    assert main(["resume", str(out), "--max-memory", "1KB", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["out"] == str(out)
    assert runs.digests(out) == wanted and not runs.litter(out)
    assert main(["resume", str(out)]) == 2
    assert "is finished" in capsys.readouterr().err


def test_random_moments(ready, tmp_path):
    model, wanted, took = ready
    dice = random.Random(0)
    for attempt in range(3):
        out = tmp_path / f"out{attempt}"
        moments.kill_after(dice.uniform(0, took), model, out)
        assert runs.go_on(model, out, wanted)["equal"]


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
    model, *_ = ready
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").touch()
    with pytest.raises(CheckpointError, match="is there already"):
        runs.run(model, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
