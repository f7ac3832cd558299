"""Files that are whole or not there, and that know when they were changed.

Data is written beside its place, flushed to disk and renamed. Tensors are described by a JSON file
with the same stem, written after them, which holds their checksum and its own: where it is, both
are whole.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from quant_dllm.errors import CheckpointError

PART = ".part"


def write(path: Path, data: bytes, flush: bool = True) -> str:
    """Write a file so that it is whole or not there; return the SHA-256 of its content.

    Args:
        path: The file.
        data: Its content.
        flush: Whether it must outlive a power cut, and not only the process.
    """
    beside = path.with_name(path.name + PART)
    try:
        with beside.open("wb") as file:
            file.write(data)
            if flush:
                file.flush()
                os.fsync(file.fileno())
        beside.replace(path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise
    return hashlib.sha256(data).hexdigest()


def write_facts(path: Path, facts: dict[str, Any], flush: bool = True) -> None:
    """Write JSON with its checksum, and make the folder remember it."""
    write(path, json.dumps({"sha256": _digest(facts), "facts": facts}).encode(), flush)
    if flush:
        sync(path.parent)


def read_facts(path: Path) -> dict[str, Any]:
    """Read what `write_facts` wrote.

    Raises:
        CheckpointError: It was changed since.
    """
    try:
        found = json.loads(path.read_bytes())
        if found["sha256"] == _digest(found["facts"]):
            return found["facts"]
    except (ValueError, KeyError, TypeError):
        pass
    raise damaged(path)


def save(path: Path, tensors: dict[str, Tensor], facts: dict[str, Any], flush: bool = True) -> None:
    """Write tensors to ``path`` and facts beside them; the facts come last."""
    digest = write_tensors(path, tensors, flush)
    write_facts(path.with_suffix(".json"), facts | {"file": digest}, flush)


def write_tensors(path: Path, tensors: dict[str, Tensor], flush: bool = True) -> str:
    """Write tensors alone; return the SHA-256 of the file."""
    from safetensors.torch import save as pack

    ready = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    return write(path, pack(ready, metadata={"format": "pt"}), flush)


def check(path: Path, digest: str) -> None:
    """Hold a file against its checksum.

    Raises:
        CheckpointError: It is another, or gone.
    """
    try:
        found = file_digest(path)
    except FileNotFoundError:
        raise damaged(path) from None
    if found != digest:
        raise damaged(path)


def read_tensors(path: Path, digest: str) -> dict[str, Tensor]:
    """Read tensors that have this checksum; they lie in memory of their own.

    Raises:
        CheckpointError: The file is another, or gone.
    """
    from safetensors.torch import load

    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise damaged(path) from None
    if hashlib.sha256(data).hexdigest() != digest:
        raise damaged(path)
    return {name: tensor.clone() for name, tensor in load(data).items()}


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def damaged(path: Path) -> CheckpointError:
    """Return the error for a saved file that is not what was saved."""
    return CheckpointError(
        f"{path} is not what was saved: it was changed or removed, by the disk or by somebody. "
        f"Remove {path.parent} and quantize again."
    )


@contextmanager
def explained(out: Path, what_is_left: str) -> Iterator[None]:
    """Turn what the system refuses into one line."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise CheckpointError(f"{out} could not be written: {reason}. {what_is_left}") from None


def sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _digest(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
