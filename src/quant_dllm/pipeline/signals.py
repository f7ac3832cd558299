"""Ctrl-C and SIGTERM: the first lets the layer under way be finished, the second ends the run."""

import logging
import signal
import threading
from types import FrameType, TracebackType

logger = logging.getLogger(__name__)

WATCHED = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """Notes the first signal; a second one has the system's own effect, at once.

    Use it in a ``with`` statement. Outside the main thread it watches nothing.
    """

    def __init__(self) -> None:
        self.wanted = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> "Stop":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in WATCHED}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler or signal.SIG_DFL)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.wanted = True
        for watched in WATCHED:
            signal.signal(watched, signal.SIG_DFL)
        logger.warning("stopping when the layer is finished; once more to stop now")
