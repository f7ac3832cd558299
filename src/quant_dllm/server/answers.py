"""Answers in OpenAI's form, whole or in chunks, and the step-by-step form of our own."""

import json
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from quant_dllm.generation.draft import Draft

Kind = Literal["chat", "text"]
BROKEN = "�"  # a character of which some bytes are still hidden


@dataclass
class Tail:
    """Follows the settled text of a draft, up to a stop text.

    Attributes:
        stops: Texts that end the answer and are not part of it.
        sent: What was handed out so far.
        stopped: Whether a stop text was met.
    """

    stops: Sequence[str] = ()
    sent: str = ""
    stopped: bool = False

    def cut(self, text: str) -> str:
        """Return the text in front of the first stop text."""
        places = [at for stop in self.stops if (at := text.find(stop)) >= 0]
        self.stopped = bool(places)
        return text[: min(places)] if places else text

    def more(self, settled: str, last: bool = False) -> str:
        """Return what is new and will stay: no half character, no beginning of a stop text."""
        text = self.cut(settled)
        if not last and not self.stopped:
            text = text.rstrip(BROKEN)
            held = max((_overlap(text, stop) for stop in self.stops), default=0)
            text = text[: len(text) - held]
        if not text.startswith(self.sent):
            return ""
        new, self.sent = text[len(self.sent) :], text
        return new


def _overlap(text: str, stop: str) -> int:
    """Count the last characters of the text that begin the stop text."""
    return next((n for n in range(len(stop) - 1, 0, -1) if text.endswith(stop[:n])), 0)


@dataclass
class Answer:
    """The frame that all chunks of one answer share."""

    kind: Kind
    model: str
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, drafts: Sequence[Draft], tails: Sequence[Tail]) -> dict[str, Any]:
        """Return one object with every choice."""
        choices = []
        for i, (draft, tail) in enumerate(zip(drafts, tails, strict=True)):
            text = tail.cut(draft.text)
            said = {"message": {"role": "assistant", "content": text}}
            choices.append(
                {"index": i, "finish_reason": finish(draft, tail), "logprobs": None}
                | (said if self.kind == "chat" else {"text": text})
            )
        return self._frame(choices) | {"usage": usage(drafts), "denoising": facts(drafts)}

    def first(self, index: int) -> dict[str, Any]:
        """Return the chunk that opens a choice of a chat."""
        return self._chunk(index, {"role": "assistant", "content": ""}, None)

    def part(self, index: int, text: str) -> dict[str, Any]:
        """Return a chunk of text."""
        return self._chunk(index, {"content": text}, None)

    def last(self, index: int, why: str) -> dict[str, Any]:
        """Return the chunk that closes a choice."""
        return self._chunk(index, {}, why)

    def counts(self, drafts: Sequence[Draft]) -> dict[str, Any]:
        """Return the chunk with the usage."""
        frame = self._frame([], ".chunk" if self.kind == "chat" else "")
        return frame | {"usage": usage(drafts), "denoising": facts(drafts)}

    def _chunk(self, index: int, delta: dict[str, str], why: str | None) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": index, "finish_reason": why, "logprobs": None}
        if self.kind == "chat":
            return self._frame([choice | {"delta": delta}], ".chunk")
        return self._frame([choice | {"text": delta.get("content", "")}])

    def _frame(self, choices: list[dict[str, Any]], suffix: str = "") -> dict[str, Any]:
        chat = self.kind == "chat"
        return {
            "id": ("chatcmpl-" if chat else "cmpl-") + self.id,
            "object": ("chat.completion" if chat else "text_completion") + suffix,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }


def finish(draft: Draft, tail: Tail) -> str:
    """Say why an answer ends."""
    return "stop" if tail.stopped or draft.ended else "length"


def usage(drafts: Sequence[Draft]) -> dict[str, int]:
    """Count tokens."""
    prompt, written = sum(d.start for d in drafts), sum(len(d.token_ids) for d in drafts)
    return {"prompt_tokens": prompt, "completion_tokens": written,
            "total_tokens": prompt + written}  # fmt: skip


def facts(drafts: Sequence[Draft]) -> dict[str, Any]:
    """Say what the answers took."""
    return {
        "steps": sum(draft.step for draft in drafts),
        "calls": sum(draft.denoiser.calls for draft in drafts),
        "positions": sum(draft.denoiser.positions for draft in drafts),
    }


class Steps:
    """Tells, step by step, which tokens were written and how sure the model was."""

    def __init__(self) -> None:
        self.before: list[str | None] = []

    def __call__(self, draft: Draft) -> dict[str, Any]:
        """Return what the last step changed: position, text, confidence."""
        now = draft.cells()
        before = self.before or [None] * len(now)
        self.before = [piece for piece, _ in now]
        written = [
            [i, piece, round(sure, 4)]
            for i, ((piece, sure), old) in enumerate(zip(now, before, strict=True))
            if piece is not None and piece != old
        ]
        return draft.facts() | {"written": written}


def event(value: dict[str, Any], name: str = "") -> bytes:
    """Write one server-sent event."""
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(value, ensure_ascii=False)}\n\n".encode()


DONE = b"data: [DONE]\n\n"


def error(message: str, kind: str, code: str | None = None) -> dict[str, Any]:
    """Return an error in OpenAI's form."""
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}
