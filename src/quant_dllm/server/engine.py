"""One model, one thread that runs it, and a queue in front of it."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from quant_dllm.errors import RequestError
from quant_dllm.generation.chat import Message, chat_prompt, has_chat_template
from quant_dllm.generation.draft import Draft
from quant_dllm.generation.generate import checked, chosen_sampling
from quant_dllm.models.model import DiffusionLM
from quant_dllm.server.metrics import Metrics

T = TypeVar("T")
DEFAULT_LENGTH = 128


class BusyError(Exception):
    """The queue is full."""


class GoneError(Exception):
    """The client went away."""


@dataclass
class Engine:
    """Runs drafts one after the other, in the order in which they came.

    Attributes:
        model: What runs.
        name: What it is called.
        queue: Drafts that may wait, beside the one that runs.
        timeout: Seconds that a draft may take, waiting included.
    """

    model: DiffusionLM
    name: str
    queue: int = 128
    timeout: float = 600.0
    metrics: Metrics = field(default_factory=Metrics)
    admitted: int = 0
    _pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "denoiser"))
    _tokenizer: threading.Lock = field(default_factory=threading.Lock)

    def close(self) -> None:
        """Let nothing start any more."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def begin(
        self, prompt: str | list[Message], length: int | None, settings: dict[str, Any], seed: int
    ) -> Draft:
        """Check that an answer can be written.

        Raises:
            RequestError: It cannot.
        """

        def make() -> Draft:
            with self._tokenizer:
                return self._begin(prompt, length, settings, seed)

        return await asyncio.to_thread(make)

    def _begin(
        self, prompt: str | list[Message], length: int | None, settings: dict[str, Any], seed: int
    ) -> Draft:
        tokenizer, context = self.model.tokenizer, self.model.source.config.context
        if not isinstance(prompt, str) and not has_chat_template(tokenizer):
            raise RequestError(
                f"{self.name} has no chat template: it is a base model. Ask /v1/completions."
            )
        asked = prompt if isinstance(prompt, str) else chat_prompt(tokenizer, prompt, self.name)
        if not asked:
            raise RequestError("The prompt is empty; at least one token is wanted.")
        settings = checked(settings)
        tokens = length or 0
        if not tokens:
            used = len(tokenizer(asked, add_special_tokens=False)["input_ids"])
            block: int = settings.get("block_length") or 1
            tokens = min(DEFAULT_LENGTH, max(context - used, 1)) // block * block or block
        sampling = chosen_sampling(self.model, tokens, settings)
        return Draft.begin(self.model, asked, sampling, length=tokens, seed=seed, watched=True)

    async def run(
        self, draft: Draft, look: Callable[[Draft], T], gone: asyncio.Event
    ) -> AsyncIterator[T]:
        """Yield what ``look`` sees after every step.

        Raises:
            BusyError: Too many wait already.
            GoneError: ``gone`` was set.
            TimeoutError: It took too long.
        """
        if self.admitted > self.queue:
            raise BusyError
        loop, found = asyncio.get_running_loop(), asyncio.Queue[Any]()
        stop = threading.Event()

        def put(item: Any) -> None:
            loop.call_soon_threadsafe(found.put_nowait, item)

        self._admit(1)
        work = self._pool.submit(self._work, draft, look, stop, put)
        leaving, ended = asyncio.create_task(_tell(gone, found)), False
        try:
            async with asyncio.timeout(self.timeout):
                while (item := await found.get()) is not _END:
                    if isinstance(item, BaseException):
                        raise item
                    yield item
            ended = True
        finally:
            self.metrics.cancelled.inc(not ended)
            stop.set()
            work.cancel()
            leaving.cancel()
            self._admit(-1)

    def _admit(self, change: int) -> None:
        self.admitted += change
        self.metrics.waiting.set(self.admitted)

    def _work(
        self,
        draft: Draft,
        look: Callable[[Draft], Any],
        stop: threading.Event,
        put: Callable[[Any], None],
    ) -> None:
        """Denoise in the engine's thread until it is done or nobody waits for it any more."""
        try:
            before = 0
            for _ in draft.steps():
                self.metrics.calls.inc(draft.denoiser.calls - before)
                before = draft.denoiser.calls
                if stop.is_set():
                    return
                put(look(draft))
            self.metrics.tokens.inc(len(draft.token_ids))
            put(_END)
        except BaseException as error:  # it belongs to who waits for the draft
            put(error)


_END = object()


async def _tell(gone: asyncio.Event, found: asyncio.Queue[Any]) -> None:
    await gone.wait()
    found.put_nowait(GoneError())
