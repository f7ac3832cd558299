"""Write a model folder so that it is either whole or not there."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from quant_dllm.checkpoint.folder import MANIFEST
from quant_dllm.errors import CheckpointError

SHARD_BYTES = 1 << 30  # also what a shard takes in memory while it is written

NOTHING = "Nothing was left behind; free space or choose another folder."


def refuse_existing(out: Path) -> None:
    """Refuse to write over anything.

    Raises:
        CheckpointError: ``out`` is there and is not an empty folder, or its parent is a file.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise CheckpointError(
            f"{out} is there already; nothing is overwritten. Remove it or name another folder."
        )
    if any(parent.is_file() for parent in out.absolute().parents):
        raise CheckpointError(f"{out} lies under a file; name a folder that can be made.")


class CheckpointWriter:
    """Collect tensors into shards beside ``out`` and rename the folder when all is on disk.

    Use it in a ``with`` statement; unless `publish` was reached, nothing is left behind. A process
    killed in between leaves a hidden folder beside ``out``, and nothing under its name.
    """

    def __init__(self, out: Path, shard_bytes: int = SHARD_BYTES, left: str = NOTHING):
        refuse_existing(out)
        self.out, self.shard_bytes, self.left = out, shard_bytes, left
        self.folder = out.absolute().parent / f".{out.name}.partial-{os.getpid()}"
        self.pending: dict[str, Tensor] = {}
        self.shards: list[tuple[Path, list[str]]] = []

    def __enter__(self) -> "CheckpointWriter":
        with _explained(self.out, self.left):
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def add(self, tensors: dict[str, Tensor]) -> None:
        """Take tensors; they are written when a shard is full."""
        self.pending |= {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
        if sum(tensor.nbytes for tensor in self.pending.values()) >= self.shard_bytes:
            self._flush()

    def add_file(self, name: str, content: bytes) -> None:
        """Write a small file beside the weights."""
        with _explained(self.out, self.left):
            (self.folder / name).write_bytes(content)

    @property
    def weight_bytes(self) -> int:
        """Count the bytes of the weight files; what is pending is written first."""
        self._flush()
        return sum(path.stat().st_size for path, _ in self.shards)

    def publish(self, config: dict[str, Any], manifest: dict[str, Any]) -> None:
        """Write what is left, make it durable, and give the folder its name."""
        self._flush()
        with _explained(self.out, self.left):
            self._name_shards()
            self.add_file("config.json", _json(config))
            self.add_file(MANIFEST, _json(manifest))
            for file in self.folder.iterdir():
                _sync(file)
            _sync(self.folder)
            if self.out.is_dir():
                self.out.rmdir()
            self.folder.rename(self.out.absolute())
            _sync(self.out.absolute().parent)

    def _flush(self) -> None:
        from safetensors.torch import save_file

        if not self.pending:
            return
        path = self.folder / f"shard-{len(self.shards)}"
        with _explained(self.out, self.left):
            save_file(self.pending, path, metadata={"format": "pt"})
        self.shards.append((path, list(self.pending)))
        self.pending = {}

    def _name_shards(self) -> None:
        """Give the shards the names that every loader looks for."""
        if len(self.shards) == 1:
            self.shards[0][0].rename(self.folder / "model.safetensors")
            return
        total, homes = 0, {}
        for i, (path, names) in enumerate(self.shards, start=1):
            name = f"model-{i:05d}-of-{len(self.shards):05d}.safetensors"
            total += path.stat().st_size
            path.rename(self.folder / name)
            homes |= dict.fromkeys(names, name)
        index = {"metadata": {"total_size": total}, "weight_map": homes}
        self.add_file("model.safetensors.index.json", _json(index))


@contextmanager
def _explained(out: Path, left: str) -> Iterator[None]:
    """Turn what the system refuses into one line."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise CheckpointError(f"{out} could not be written: {reason}. {left}") from None


def _json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
