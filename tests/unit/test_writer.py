import errno
import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from quant_dllm.checkpoint import writer as module
from quant_dllm.checkpoint.folder import Folder
from quant_dllm.checkpoint.writer import CheckpointWriter
from quant_dllm.errors import CheckpointError, ModelError


def write(out, **options):
    with CheckpointWriter(out, **options) as writer:
        for i in range(4):
            writer.add({f"t{i}": torch.full((100,), float(i))})
        writer.publish({"a": 1}, {"b": 2})


def test_a_published_folder_holds_everything(tmp_path):
    write(tmp_path / "out")
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert names == {"model.safetensors", "config.json", "quant_dllm.json"}
    assert set(load_file(tmp_path / "out" / "model.safetensors")) == {"t0", "t1", "t2", "t3"}
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_large_models_are_cut_into_shards_with_an_index(tmp_path):
    write(tmp_path / "out", shard_bytes=700)
    folder = Folder(tmp_path / "out")
    assert len(folder.shards) == 2
    assert folder.tensor_names == {"t0", "t1", "t2", "t3"}
    assert torch.equal(folder.tensor("t3"), torch.full((100,), 3.0))
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == folder.weight_bytes


def test_what_fails_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), CheckpointWriter(tmp_path / "out") as writer:
        writer.add({"t": torch.zeros(5)})
        1 / 0  # noqa: B018
    assert not any(tmp_path.iterdir())


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(CheckpointError, match=r"No space left on device\. Nothing was left"):
        write(tmp_path / "out")
    assert not any(tmp_path.iterdir())


def test_a_disk_that_fills_while_closing_leaves_nothing(tmp_path, monkeypatch):
    def full(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module, "_sync", full)
    with pytest.raises(CheckpointError, match="No space left"):
        write(tmp_path / "out")
    assert not any(tmp_path.iterdir())


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").touch()
    with pytest.raises(CheckpointError, match="is there already"):
        write(tmp_path / "out")
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="lies under a file"):
        write(tmp_path / "file" / "out")
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty")


def test_a_killed_save_leaves_nothing_under_the_final_name(tmp_path):
    code = (
        "import sys, os, signal, torch\n"
        "from pathlib import Path\n"
        "from quant_dllm.checkpoint.writer import CheckpointWriter\n"
        "with CheckpointWriter(Path(sys.argv[1]), shard_bytes=100) as writer:\n"
        "    writer.add({'t': torch.zeros(500)})\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "out")])
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    write(tmp_path / "out")  # and the name is free
    assert Folder(tmp_path / "out").config == {"a": 1}


def test_a_tensor_that_is_not_there_is_named(tmp_path):
    write(tmp_path / "out")
    with pytest.raises(ModelError, match="no tensor t9"):
        Folder(tmp_path / "out").tensor("t9")
