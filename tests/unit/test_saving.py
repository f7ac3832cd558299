"""Files that are whole or not there, the pool of hidden states, the lock."""

import os
import signal
import subprocess
import sys

import pytest
import torch

from quant_dllm.checkpoint import durable
from quant_dllm.checkpoint.lock import locked
from quant_dllm.errors import CheckpointError
from quant_dllm.pipeline.opening import batches, mine
from quant_dllm.pipeline.signals import Stop
from quant_dllm.pipeline.spool import Pool, Spool


def test_tensors_and_facts_come_back_and_a_change_is_seen(tmp_path):
    path = tmp_path / "x.safetensors"
    durable.save(path, {"a": torch.arange(5.0)}, {"b": [1, "c"]})
    facts = durable.read_facts(path.with_suffix(".json"))
    assert facts["b"] == [1, "c"]
    assert torch.equal(durable.read_tensors(path, facts["file"])["a"], torch.arange(5.0))
    durable.check(path, facts["file"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.json", "x.safetensors"]
    for file in (path, path.with_suffix(".json")):
        whole = file.read_bytes()
        for at in (0, len(whole) // 2, len(whole) - 2):
            file.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
            with pytest.raises(CheckpointError, match="is not what was saved"):
                durable.read_tensors(path, durable.read_facts(path.with_suffix(".json"))["file"])
        file.write_bytes(whole)
    path.unlink()
    with pytest.raises(CheckpointError, match="is not what was saved"):
        durable.read_tensors(path, facts["file"])


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "x"
    durable.write(path, b"before")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        durable.write(path, b"after")
    assert path.read_bytes() == b"before" and [p.name for p in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("limit", [0, 2 * 4 * 12, 10**6])
def test_a_spool_gives_back_what_was_put_whatever_fits_into_memory(tmp_path, limit):
    pool = Pool(limit)
    spools = [Spool(tmp_path, name, pool, torch.device("cpu")) for name in ("stream", "full")]
    wanted = {(s, b): torch.randn(1, 3, 4) for s in range(2) for b in range(3)}  # 48 bytes each
    for (s, b), states in wanted.items():
        spools[s].put(b, states, 0)
    for generation in range(1, 4):
        for spool in spools:
            spool.turn(generation - 1)
        assert pool.used <= limit
        for (s, b), states in wanted.items():
            assert torch.equal(spools[s][b], states)
            wanted[s, b] = states + 1
            spools[s].put(b, wanted[s, b], generation)
    files = spools[0].turn(3)
    again = Spool(tmp_path, "stream", Pool(0), torch.device("cpu"), digests=files)
    assert again.turn(3) == files
    assert all(torch.equal(again[b], wanted[0, b]) for b in range(3))
    assert spools[0]._path(1, 3).name in files
    spools[0]._path(1, 3).write_bytes(b"spoilt")
    with pytest.raises(CheckpointError, match="is not what was saved"):
        again[1]


@pytest.mark.parametrize(("views", "length"), [(1, 8), (6, 32), (128, 256), (13, 5000), (512, 64)])
def test_batches_cover_the_text_once_and_in_order(views, length):
    numbers = batches(views, length)
    assert len(numbers) == 8
    flat = [(n, s) for shard in numbers for n, s in shard.items()]
    assert [n for n, _ in flat] == list(range(len(flat)))
    assert [i for _, s in flat for i in range(s.start, s.stop)] == list(range(views))
    assert all((s.stop - s.start) * length <= max(4096, length) for _, s in flat)
    assert [list(r) for r in mine(numbers)] == [list(shard) for shard in numbers]


def test_one_run_at_a_time(tmp_path):
    out = tmp_path / "out"
    code = (
        "import sys\nfrom pathlib import Path\nfrom quant_dllm.checkpoint.lock import locked\n"
        "with locked(Path(sys.argv[1])):\n    print('held', flush=True)\n    sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", code, str(out)]
    with subprocess.Popen(command, stdin=-1, stdout=-1, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with (
            pytest.raises(CheckpointError, match=f"written by process {other.pid} on"),
            locked(out),
        ):
            pass
        other.kill()
    with locked(out):  # the lock died with its process
        pass
    assert not list(tmp_path.iterdir())


def test_the_second_signal_is_the_systems():
    before = signal.getsignal(signal.SIGTERM)
    with Stop() as stop:
        assert not stop.wanted
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.wanted and signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) is before
