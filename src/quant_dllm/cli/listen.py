"""Run an application on a socket until it is told to stop."""

import socket
import sys
from typing import Any

from quant_dllm.errors import RequestError

STOPPING = 5  # seconds that open answers have when the server is told to stop
LOOPBACK = ("127.", "::1", "localhost")


def listen(app: Any, name: str, host: str, port: int) -> None:
    """Serve until Ctrl-C.

    Raises:
        RequestError: The address cannot be had.
    """
    import uvicorn

    try:
        open_socket = socket.create_server((host, port), family=_family(host), backlog=2048)
    except (OSError, OverflowError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).rstrip(".")
        raise RequestError(
            f"{host}:{port} cannot be had: {reason}. Choose another with --port or --host."
        ) from None
    shown = f"[{host}]" if ":" in host else host
    url = f"http://{shown}:{open_socket.getsockname()[1]}"
    print(f"{name}: page {url}/ · OpenAI clients {url}/v1 · Ctrl-C stops it", file=sys.stderr)
    if not host.startswith(LOOPBACK):
        print("every machine that reaches this address can use it", file=sys.stderr)
    sys.stderr.flush()
    config = uvicorn.Config(
        app, log_level="warning", timeout_graceful_shutdown=STOPPING, timeout_keep_alive=30,
        h11_max_incomplete_event_size=1 << 16, server_header=False,
    )  # fmt: skip
    uvicorn.Server(config).run(sockets=[open_socket])


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
