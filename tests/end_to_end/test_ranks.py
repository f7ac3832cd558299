"""Several processes: the same bytes, and a reason where one of them dies."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import kills
from quant_dllm.pipeline.journal import folder_of
from quant_dllm.pipeline.owners import Owners
from quant_dllm.statistics.layer import Account
from quant_dllm.statistics.reduction import Tree


def command(model, out, *words, recipe="quant-dllm-2bit"):
    settings = {k: v for k, v in kills.SETTINGS.items() if not k.startswith("quantizer")}
    if recipe != "quant-dllm-2bit":
        del settings["precision.ratio"]
    else:
        settings = kills.SETTINGS
    sets = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    return [
        sys.executable, "-m", "quant_dllm.cli.main", "quantize", str(model), "-o", str(out), "-r",
        recipe, "--calibration", str(model / kills.TEXT), *sets, *words,
    ]  # fmt: skip


def environment(**more):
    return os.environ | {"OMP_NUM_THREADS": "1", "QUANT_DLLM_KERNEL": "reference"} | more


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return kills.make_model(tmp_path_factory.mktemp("ranks") / "model")


@pytest.mark.parametrize("recipe", ["quant-dllm-2bit", "gptaq-2bit", "awq-2bit"])
def test_four_processes_write_the_bytes_of_one(model, tmp_path, recipe):
    runs = [
        subprocess.Popen(command(model, tmp_path / str(n), "--gpus", str(n), recipe=recipe),
                         env=environment(), stdout=subprocess.PIPE, text=True)
        for n in ((1, 2, 4) if recipe == "quant-dllm-2bit" else (1, 4))
    ]  # fmt: skip
    said = [process.communicate()[0] for process in runs]
    assert [process.returncode for process in runs] == [0] * len(runs)
    assert [text.count("written") for text in said] == [1] * len(runs)
    one, *others = (kills.digests(out) for out in sorted(tmp_path.iterdir()))
    assert all(other == one for other in others)


def test_a_dead_process_ends_the_run_with_its_reason_and_the_run_goes_on(model, tmp_path):
    out = tmp_path / "out"
    launcher = subprocess.Popen(
        command(model, out, "--gpus", "2"), env=environment(), stderr=subprocess.PIPE, text=True
    )
    while not list(folder_of(out).glob("layer-*.json")):
        assert launcher.poll() is None
        time.sleep(0.01)
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children")
    if not children.is_file():
        launcher.kill()
        pytest.skip("this system does not name children")
    os.kill(int(children.read_text().split()[1]), signal.SIGKILL)
    said = launcher.communicate()[1]
    assert launcher.returncode == 75
    assert "process 1 of 2 ended: signal 9 (SIGKILL)" in said and "resume" in said
    assert not out.exists()
    one = subprocess.run(command(model, tmp_path / "one"), env=environment(), capture_output=True)
    again = subprocess.run(command(model, out), env=environment(), capture_output=True)
    assert one.returncode == again.returncode == 0
    assert kills.digests(out) == kills.digests(tmp_path / "one")


def test_three_processes_are_refused(model, tmp_path):
    done = subprocess.run(
        command(model, tmp_path / "out", "--gpus", "3"), env=environment(), capture_output=True
    )
    assert done.returncode == 2 and b"1, 2, 4, 8" in done.stderr


def accounts(count):
    dice = torch.Generator().manual_seed(0)
    for _ in range(count):
        account = Account()
        account.add(torch.randn(5, 7, generator=dice), None, keep=True)
        yield account


def test_the_tree_of_shards_is_that_of_any_number_of_processes():
    whole, halves = Tree(), [Tree(), Tree()]
    for account in accounts(8):
        whole.push(account)
    for i, account in enumerate(accounts(8)):
        halves[i // 4].push(account)
    left, right = (tree.total() for tree in halves)
    together = left.merge(right)
    assert torch.equal(whole.total().sums["moment"], together.sums["moment"])
    assert whole.total().tokens == together.tokens == 40
    assert torch.equal(torch.cat(whole.total().kept), torch.cat(together.kept))
    one_by_one = sum(a.sums["moment"] for a in accounts(8))
    assert torch.allclose(one_by_one, together.sums["moment"], atol=1e-4)


def test_owners_share_the_work(monkeypatch):
    from quant_dllm.pipeline import owners

    owned = Owners({"down": 0, "q": 1, "k": 1, "v": 1}, 8)
    assert owned.rounds() == [["down", "q"], ["k"], ["v"]]
    monkeypatch.setattr(owners, "world", lambda: 2)
    block = torch.nn.ModuleDict(
        {"a": torch.nn.Linear(8, 4), "b": torch.nn.Linear(2, 64), "c": torch.nn.Linear(2, 64)}
    )
    group = owners.Group(("b", "a", "c"))
    found = Owners.assign(block, [group])
    assert found.layers == {"b": 0, "a": 1, "c": 0}  # 256 multiplications each, in this order
    assert found.of(group) == [0, 1]
