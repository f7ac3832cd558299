"""``--gpus N``: the same command in N processes that find each other as under ``torchrun``."""

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from quant_dllm.errors import Interrupted, PeerLost, RequestError

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
GO_ON, GRACE, LOOK_EVERY = 75, 20.0, 0.1  # exit status; seconds
Ranks = list[tuple[subprocess.Popen[bytes], IO[bytes]]]


def is_first() -> bool:
    """Tell whether this process is the one that speaks for all."""
    return os.environ.get("RANK", "0") == "0"


def parse_size(text: str | None) -> int | None:
    """Read bytes: ``500MB``, ``8GB``.

    Raises:
        RequestError: It is no size.
    """
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)i?B?", text.strip(), re.IGNORECASE)
    if not found:
        raise RequestError(f"--max-memory {text!r} is no size, as 500MB or 8GB are.")
    return int(float(found[1]) * UNITS[found[2].upper()])


def launched(count: int, out: Path | None = None) -> bool:
    """Run this command in so many processes, if it is more than one and they do not run yet.

    Args:
        count: Processes.
        out: The output folder of a run that can be gone on with.

    Raises:
        RequestError: Their number is no power of two.
        PeerLost: One of them died; the message says how.
        Interrupted: They were stopped.
    """
    if count == 1 or "RANK" in os.environ:
        return False
    if count & (count - 1):
        raise RequestError(f"--gpus {count}: 1, 2, 4, 8 … are wanted, so that shares are equal.")
    with tempfile.TemporaryDirectory() as folder, _started(count, Path(folder)) as ranks:
        dead = _wait([process for process, _ in ranks])
        _report(dead, ranks, out)
    return True


@contextmanager
def _started(count: int, folder: Path) -> Iterator[Ranks]:
    """Start the processes; leave none behind. A first signal is for them to obey."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "quant_dllm.cli.main", *sys.argv[1:]]
    ranks: Ranks = []
    for rank in range(count):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count),
               "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}  # fmt: skip
        said = (folder / f"{rank}.txt").open("w+b")
        said_to = None if rank == 0 else said
        ranks.append((subprocess.Popen(command, env=_threads(count) | own, stderr=said_to), said))

    def hand_on(number: int, _: object) -> None:
        for process, _said in ranks:
            if process.poll() is None:
                process.send_signal(number)

    before = signal.signal(signal.SIGTERM, hand_on)
    again = signal.signal(signal.SIGINT, lambda *_: None)  # a terminal tells all of them itself
    try:
        yield ranks
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGINT, again)
        for process, said in ranks:
            if process.poll() is None:
                process.kill()
            process.wait()
            said.close()


def _threads(count: int) -> dict[str, str]:
    """Share the processor's cores, unless somebody said how."""
    threads = str(max(1, (os.cpu_count() or 1) // count))
    return {"OMP_NUM_THREADS": threads} | os.environ


def _wait(processes: list[subprocess.Popen[bytes]]) -> int | None:
    """Wait for all; return the number of the first that failed, once the others have ended."""
    dead, since = None, 0.0
    while any(process.poll() is None for process in processes):
        for rank, process in enumerate(processes):
            if dead is None and process.poll():
                dead, since = rank, time.monotonic()
        if dead is not None and time.monotonic() - since > GRACE:
            return dead
        time.sleep(LOOK_EVERY)
    failed = [rank for rank, process in enumerate(processes) if process.poll()]
    return dead if dead is not None else next(iter(failed), None)


def _report(dead: int | None, ranks: Ranks, out: Path | None) -> None:
    """Say why the run ended, if it did not end well."""
    if dead is None:
        return
    status = ranks[dead][0].poll() or 0
    if dead == 0 and status > 0:  # it has spoken for itself
        sys.exit(status)
    said = ranks[dead][1]
    said.seek(0)
    lines = said.read().decode(errors="replace").strip().splitlines()
    how = f"signal {-status} ({signal.Signals(-status).name})" if status < 0 else (
        lines[-1] if lines else f"exit status {status}"
    )  # fmt: skip
    error = Interrupted if status == GO_ON else PeerLost
    saved = "What is finished is saved; go on with: quant-dllm resume"
    then = f"{saved} {out} --gpus {len(ranks)}" if out else "Run it again."
    raise error(f"process {dead} of {len(ranks)} ended: {how}. {then}")
