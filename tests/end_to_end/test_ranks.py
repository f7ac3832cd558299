"""Several processes: the same bytes, and a reason where one of them dies."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import moments
import runs
from quant_dllm.cli.launch import launched
from quant_dllm.cli.main import main
from quant_dllm.distributed import mean_gradients, processes, rank, world
from quant_dllm.errors import PeerLost, RequestError
from quant_dllm.evaluation.answers import Answer, log_likelihoods
from quant_dllm.evaluation.evaluate import evaluate
from quant_dllm.models.load import load
from quant_dllm.pipeline.journal import folder_of
from quant_dllm.pipeline.owners import Owners
from quant_dllm.statistics.layer import Account
from quant_dllm.statistics.reduction import Tree


def words(model, out, *more):
    sets = [word for key, value in runs.settings().items() for word in ("--set", f"{key}={value}")]
    return [
        "quantize", str(model), "-r", runs.ROUNDED, "-o", str(out),
        "--calibration", str(model / runs.TEXT), *sets, *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory, unchecked):
    return runs.make_model(tmp_path_factory.mktemp("ranks") / "model")


@pytest.mark.parametrize(
    ("recipe", "count"),
    [("ladder-1-rounding", 2), ("ladder-1-rounding", 4), ("gptaq-2bit", 4), ("awq-2bit", 2)],
)
def test_many_processes_write_the_bytes_of_one(model, tmp_path, recipe, count):
    one, many = tmp_path / "one", tmp_path / "many"
    runs.run(model, one, recipe=recipe)
    statuses = runs.forked_ranks(count, lambda: runs.run(model, many, recipe=recipe))
    assert statuses == [runs.DONE] * count
    assert runs.digests(many) == runs.digests(one)
    assert not runs.litter(many)


def test_a_dead_process_ends_the_others_and_the_run_goes_on(model, tmp_path):
    out, one = tmp_path / "out", tmp_path / "one"

    def die(call):
        if call == 3 and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)

    dying = moments.counting("rounding", die)
    statuses = runs.forked_ranks(2, lambda: runs.run(model, out, dying))
    assert statuses == [runs.STOPPED, -signal.SIGKILL]
    assert not out.exists() and list(folder_of(out).glob("layer-*.json"))
    runs.run(model, out)
    runs.run(model, one)
    assert runs.digests(out) == runs.digests(one)


def test_evaluation_does_not_depend_on_how_many_share_it(model, tmp_path):
    packed = tmp_path / "packed"
    runs.run(model, packed, recipe="rtn-2bit")

    def measure():
        with processes():
            found = evaluate(packed, model, model / runs.TEXT, sequences=7, length=16)
            answers = [Answer((1, 2), (3, 4 + i), draws=8) for i in range(5)]
            opened = load(packed)
            scores = log_likelihoods(opened, answers, opened.family.scoring, 0)
            told = json.dumps([found.to_dict() | {"seconds": 0}, scores])
            (tmp_path / f"{rank()}-of-{world()}").write_text(told)

    for count in (1, 2, 4):
        assert runs.forked_ranks(count, measure) == [runs.DONE] * count
    one, *others = (path.read_text() for path in sorted(tmp_path.glob("*-of-*")))
    assert len(others) == 6 and set(others) == {one}
    found, scores = json.loads(one)
    assert 0 < found["kl"] < 20 and found["sequences"] == 7 and len(set(scores)) == 5


def test_the_launcher_says_how_a_process_ended(tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\n[ "$RANK" = 1 ] && kill -9 $$\nsleep 0.5\nexit 75\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    said = r"process 1 of 2 ended: signal 9 \(SIGKILL\).* quant-dllm resume OUT --gpus 2"
    with pytest.raises(PeerLost, match=said):
        launched(2, Path("OUT"))


@pytest.mark.slow
def test_the_command_line_in_many_processes_goes_on_after_one_died(model, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "quant_dllm.cli.main", *words(model, out, "--gpus", "2")]
    threads = {"OMP_NUM_THREADS": "1"}  # as here: the bits of a product depend on it
    launcher = subprocess.Popen(
        command, env=os.environ | threads, stderr=subprocess.PIPE, text=True
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
    runs.run(model, out)
    runs.run(model, tmp_path / "one")
    assert runs.digests(out) == runs.digests(tmp_path / "one")


def test_three_processes_are_refused(model, tmp_path, capsys, monkeypatch):
    assert main(words(model, tmp_path / "out", "--gpus", "3")) == 2
    assert "1, 2, 4, 8" in capsys.readouterr().err
    monkeypatch.setenv("RANK", "0")  # as torchrun would
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(RequestError, match="1, 2, 4, 8"):
        runs.run(model, tmp_path / "out")


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


def test_accounts_that_wait_on_disk_have_the_same_bits(tmp_path):
    kept, waiting = Tree(), Tree(tmp_path)
    for account, same in zip(accounts(8), accounts(8), strict=True):
        kept.push(account)
        waiting.begin()
        assert not any(isinstance(held, Account) for _, held in waiting.subtrees)
        waiting.push(same)
    wanted, found = kept.total(), waiting.total()
    assert found.sums.keys() == wanted.sums.keys() == {"moment", "magnitude"}
    assert all(torch.equal(found.sums[name], wanted.sums[name]) for name in wanted.sums)
    assert torch.equal(torch.cat(found.kept), torch.cat(wanted.kept)) and found.tokens == 40
    assert list(tmp_path.iterdir()) == []


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


def test_a_gradient_that_a_process_lacks_is_zero(tmp_path):
    def work():
        with processes():
            learned = [torch.zeros(3, requires_grad=True), torch.zeros(2, requires_grad=True)]
            learned[0].sum().backward()
            if rank():
                (2 * learned[1]).sum().backward()
            mean_gradients(learned)
            found = [parameter.grad.tolist() for parameter in learned]
            (tmp_path / f"{rank()}.json").write_text(json.dumps(found))

    assert runs.forked_ranks(2, work) == [runs.DONE] * 2
    for i in range(2):
        assert json.loads((tmp_path / f"{i}.json").read_text()) == [[1.0] * 3, [1.0] * 2]
