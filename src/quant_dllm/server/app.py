"""The application: routes, limits and errors."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, StreamingResponse
from starlette.exceptions import HTTPException

from quant_dllm.errors import QuantDLLMError
from quant_dllm.generation.draft import Draft
from quant_dllm.server import answers
from quant_dllm.server.answers import Answer, Kind, Steps, Tail
from quant_dllm.server.bodies import Body, ChatBody, CompletionBody, DenoiseBody, Turn
from quant_dllm.server.engine import BusyError, Engine, GoneError
from quant_dllm.server.guard import Guard, Refusal, read
from quant_dllm.server.live import live_page

logger = logging.getLogger(__name__)
B = TypeVar("B", bound=Body)
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'"
)
CLIENT_GONE = 499  # nginx's number for it; nobody receives it


@dataclass
class Asked:
    """A request whose body was read.

    Attributes:
        drafts: Answers to write, a choice each.
        gone: Set when the client goes away.
    """

    body: Body
    drafts: list[Draft]
    gone: asyncio.Event
    watcher: asyncio.Task[None]

    def tails(self) -> list[Tail]:
        """Follow each answer."""
        return [Tail(self.body.stops) for _ in self.drafts]


def application(engine: Engine, guard: Guard) -> FastAPI:
    """Build the application around an engine."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        engine.close()

    app = FastAPI(title="quant-dllm", lifespan=lifespan, openapi_url=None)
    routes = _Routes(engine, guard)
    key = [Depends(guard.check_key)]
    app.get("/", response_class=HTMLResponse)(routes.page)
    app.get("/health")(routes.health)
    app.get("/metrics", dependencies=key)(routes.metrics)
    app.get("/v1/models", dependencies=key)(routes.models)
    app.get("/v1/models/{name:path}", dependencies=key)(routes.one_model)
    for path, handler in (
        ("/v1/completions", routes.completions),
        ("/v1/chat/completions", routes.chat),
        ("/v1/denoise", routes.denoise),
    ):
        app.post(path, dependencies=key, response_model=None)(_measured(engine, path, handler))
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Refusal, _refusal)
    app.add_exception_handler(Exception, _bug)
    return app


class _Routes:
    def __init__(self, engine: Engine, guard: Guard):
        self.engine, self.guard, self.began = engine, guard, int(time.time())

    async def page(self) -> Response:
        html = live_page(self.engine, needs_key=self.guard.key is not None)
        return HTMLResponse(html, headers={"Content-Security-Policy": POLICY})

    async def health(self) -> dict[str, Any]:
        return {"status": "ok", "model": self.engine.name, "drafts": self.engine.admitted}

    async def metrics(self) -> Response:
        return PlainTextResponse(self.engine.metrics.page(), media_type="text/plain; version=0.0.4")

    async def models(self) -> dict[str, Any]:
        return {"object": "list", "data": [self._model()]}

    async def one_model(self, name: str) -> dict[str, Any]:
        self._check_model(name)
        return self._model()

    async def completions(self, request: Request) -> Response:
        body = await read(request, CompletionBody, self.guard)
        prompts = [prompt for prompt in body.prompts for _ in range(body.n or 1)]
        return await self._answer(request, body, list(prompts), "text")

    async def chat(self, request: Request) -> Response:
        body = await read(request, ChatBody, self.guard)
        turns = _plain(body.messages)
        return await self._answer(request, body, [turns] * (body.n or 1), "chat")

    async def denoise(self, request: Request) -> Response:
        body = await read(request, DenoiseBody, self.guard)
        prompt = _plain(body.messages) if body.messages else body.prompt
        asked = await self._ask(request, body, [prompt])
        return _events(_steps(self.engine, asked))

    async def _answer(
        self, request: Request, body: Body, prompts: list[Any], kind: Kind
    ) -> Response:
        asked = await self._ask(request, body, prompts)
        answer = Answer(kind, self.engine.name)
        if body.stream:
            return _events(_chunks(self.engine, asked, answer))
        tails = asked.tails()
        try:
            for draft, tail in zip(asked.drafts, tails, strict=True):
                await _finish(self.engine, asked, draft, tail)
        except BusyError:
            raise _BUSY from None
        except TimeoutError:
            raise _slow(self.engine) from None
        except GoneError:
            return Response(status_code=CLIENT_GONE)
        finally:
            asked.watcher.cancel()
        return JSONResponse(answer.whole(asked.drafts, tails))

    async def _ask(self, request: Request, body: Body, prompts: list[Any]) -> Asked:
        """Check what is asked for, and watch for the client."""
        if body.model is not None:
            self._check_model(body.model)
        if self.engine.admitted + len(prompts) > self.engine.queue + 1:
            raise _BUSY
        length, seed = body.max_completion_tokens or body.max_tokens, body.seed or 0
        try:
            drafts = [
                await self.engine.begin(prompt, length, body.settings(), (seed + i) % (1 << 63))
                for i, prompt in enumerate(prompts)
            ]
        except QuantDLLMError as error:
            raise Refusal(400, str(error)) from None
        gone = asyncio.Event()
        return Asked(body, drafts, gone, asyncio.create_task(_watch(request, gone)))

    def _check_model(self, name: str) -> None:
        if name != self.engine.name:
            raise Refusal(
                404, f"There is no model {name!r} here; {self.engine.name!r} is served.",
                "model_not_found",
            )  # fmt: skip

    def _model(self) -> dict[str, Any]:
        return {"id": self.engine.name, "object": "model", "created": self.began,
                "owned_by": "quant-dllm"}  # fmt: skip


def _plain(turns: list[Turn]) -> list[dict[str, str]]:
    return [turn.plain() for turn in turns]


_BUSY = Refusal(
    429, "Too many answers are waited for already; ask again in a few seconds.", "busy",
    {"Retry-After": "5"},
)  # fmt: skip


def _slow(engine: Engine) -> Refusal:
    return Refusal(
        504, f"It took longer than {engine.timeout:g} s; ask for fewer tokens or steps.", "timeout"
    )


async def _watch(request: Request, gone: asyncio.Event) -> None:
    """Wait until the client goes away."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    gone.set()


async def _finish(engine: Engine, asked: Asked, draft: Draft, tail: Tail) -> None:
    """Write one answer to its end, or to a stop text."""
    looks = engine.run(draft, lambda d: d.settled if tail.stops else "", asked.gone)
    async for settled in looks:
        if tail.stops and (tail.cut(settled), tail.stopped)[1]:
            break
    await looks.aclose()  # type: ignore[attr-defined]


async def _chunks(engine: Engine, asked: Asked, answer: Answer) -> AsyncIterator[bytes]:
    """Write every choice, one after the other, as its text settles."""
    for index, (draft, tail) in enumerate(zip(asked.drafts, asked.tails(), strict=True)):
        if answer.kind == "chat":
            yield answers.event(answer.first(index))
        looks = engine.run(draft, lambda d: d.settled, asked.gone)
        async for settled in looks:
            if new := tail.more(settled):
                yield answers.event(answer.part(index, new))
            if tail.stopped:
                break
        await looks.aclose()  # type: ignore[attr-defined]
        if new := tail.more(draft.text, last=True):
            yield answers.event(answer.part(index, new))
        yield answers.event(answer.last(index, answers.finish(draft, tail)))
    options = asked.body.stream_options
    if options and options.include_usage:
        yield answers.event(answer.counts(asked.drafts))
    yield answers.DONE


async def _steps(engine: Engine, asked: Asked) -> AsyncIterator[bytes]:
    """Tell of every step of one answer."""
    draft = asked.drafts[0]
    yield answers.event(
        {"prompt": draft.prompt, "length": draft.length, "planned": draft.planned,
         "prompt_tokens": draft.start, "waiting": max(0, engine.admitted)}, "start",
    )  # fmt: skip
    async for step in engine.run(draft, Steps(), asked.gone):
        yield answers.event(step, "step")
    tail = Tail(asked.body.stops)
    text = tail.cut(draft.text)
    yield answers.event(
        draft.facts() | {"text": text, "finish_reason": answers.finish(draft, tail)}, "end"
    )


def _events(chunks: AsyncIterator[bytes]) -> StreamingResponse:
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(_safe(chunks), media_type="text/event-stream", headers=headers)


async def _safe(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Turn what goes wrong after the first byte into an event."""
    try:
        async for chunk in chunks:
            yield chunk
    except GoneError:
        return
    except BusyError:
        yield answers.event(answers.error(str(_BUSY.detail), "server_error", "busy"), "error")
    except TimeoutError:
        yield answers.event(answers.error("It took too long.", "server_error", "timeout"), "error")
    except Exception:
        logger.exception("an answer broke off")
        yield answers.event(answers.error("The server failed.", "server_error"), "error")
    finally:
        with suppress(RuntimeError):
            await chunks.aclose()  # type: ignore[attr-defined]


def _measured(
    engine: Engine, path: str, handler: Callable[[Request], Awaitable[Response]]
) -> Callable[[Request], Awaitable[Response]]:
    """Count requests of a route, and how long they take."""

    async def measured(request: Request) -> Response:
        began, status = time.monotonic(), 500
        try:
            response = await handler(request)
            status = response.status_code
        except Refusal as refusal:
            status = refusal.status_code
            raise
        finally:
            engine.metrics.requests.labels(path, str(status)).inc()
            engine.metrics.seconds.labels(path).observe(time.monotonic() - began)
        return response

    return measured


async def _refusal(_: Request, error: Any) -> Response:
    kind = "invalid_request_error" if error.status_code < 500 else "server_error"
    body = answers.error(error.detail, kind, error.code)
    return JSONResponse(body, error.status_code, headers=error.headers)


async def _http_error(_: Request, error: Any) -> Response:
    body = answers.error(str(error.detail), "invalid_request_error")
    return JSONResponse(body, error.status_code, headers=getattr(error, "headers", None))


async def _bug(_: Request, error: Exception) -> Response:
    logger.error("a request failed: %r", error)
    return JSONResponse(answers.error("The server failed.", "server_error"), 500)
