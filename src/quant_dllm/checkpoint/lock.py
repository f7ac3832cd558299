"""One run at a time for one output folder."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from quant_dllm.errors import CheckpointError


def lock_of(out: Path) -> Path:
    """Name the lock of an output folder."""
    return out.absolute().parent / f".{out.name}.lock"


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold the lock of an output folder: a file beside it that the system frees when we die.

    Raises:
        CheckpointError: Another process holds it; the message names it.
    """
    path = lock_of(out)
    handle = _acquire(path, out)
    try:
        os.truncate(handle, 0)
        os.write(handle, f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


def _acquire(path: Path, out: Path) -> int:
    """Open and lock the file; begin again where its last holder has just removed it."""
    import fcntl

    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise CheckpointError(
                f"{out} could not be written: {error.strerror}. Choose another folder."
            ) from None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.read(handle, 200).decode(errors="replace") or "another process"
            os.close(handle)
            raise CheckpointError(
                f"{out} is being written by {holder}. Wait for it, or name another folder."
            ) from None
        if path.exists() and os.path.samestat(path.stat(), os.fstat(handle)):
            return handle
        os.close(handle)
