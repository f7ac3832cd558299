"""Run an application on a socket until it is told to stop."""

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from quant_dllm.errors import RequestError

STOPPING = 5  # seconds that open answers have when the server is told to stop
BACKLOG = 2048  # connections that may wait to be taken
LOOPBACK = ("127.", "::1", "localhost")


@contextmanager
def bound(host: str, port: int) -> Iterator[socket.socket]:
    """Take an address, which `listen` opens once there is something to serve.

    Raises:
        RequestError: The address cannot be had.
    """
    with socket.socket(_family(host), socket.SOCK_STREAM) as address:
        if os.name == "posix":
            address.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with _explained(host, port):
            address.bind((host, port))
        yield address


@contextmanager
def _explained(host: str, port: int) -> Iterator[None]:
    try:
        yield
    except (OSError, OverflowError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).rstrip(".")
        raise RequestError(
            f"{host}:{port} cannot be had: {reason}. Choose another with --port or --host."
        ) from None


def listen(app: Any, name: str, address: socket.socket) -> None:
    """Serve until Ctrl-C.

    Raises:
        RequestError: Somebody else listens there by now.
    """
    import uvicorn

    host, port = address.getsockname()[:2]
    with _explained(host, port):
        address.listen(BACKLOG)
    shown = f"[{host}]" if ":" in host else host
    url = f"http://{shown}:{port}"
    print(f"{name}: page {url}/ · OpenAI clients {url}/v1 · Ctrl-C stops it", file=sys.stderr)
    if not host.startswith(LOOPBACK):
        print("every machine that reaches this address can use it", file=sys.stderr)
    sys.stderr.flush()
    config = uvicorn.Config(
        app, log_level="warning", timeout_graceful_shutdown=STOPPING, timeout_keep_alive=30,
        h11_max_incomplete_event_size=1 << 16, server_header=False,
    )  # fmt: skip
    uvicorn.Server(config).run(sockets=[address])


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
