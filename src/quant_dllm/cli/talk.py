"""A conversation in the terminal: lines in, canvases that denoise out."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from quant_dllm.cli.canvas import caption, drawn
from quant_dllm.errors import QuantDLLMError, RequestError
from quant_dllm.generation.chat import Message, chat_prompt, has_chat_template
from quant_dllm.generation.draft import Draft, check_tokenizer
from quant_dllm.generation.generate import chosen_sampling
from quant_dllm.models.model import DiffusionLM

ANSWER = 128  # tokens, where the context has room for them
LEAST = 8  # tokens that an answer needs: older turns are forgotten for them
SHORTEST = "a"  # a line that every answer can follow, if any


@dataclass
class Talk:
    """Turns so far, and how answers are drawn.

    Attributes:
        length: Tokens of an answer; as many as there is room for, `ANSWER` at most, if not given.
    """

    model: DiffusionLM
    settings: dict[str, Any]
    length: int | None = None
    system: str | None = None
    seed: int = 0
    turns: list[Message] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Refuse a model that cannot read."""
        check_tokenizer(self.model)
        self.instructed = has_chat_template(self.model.tokenizer)

    def check(self) -> None:
        """Refuse settings with which no line could be answered.

        Raises:
            RequestError: Numbers that do not divide, an answer longer than the context, a system
                text for a model without turns.
        """
        if self.system is not None and not self.instructed:
            raise RequestError(
                f"{self.model.source.name} has no chat template, so that --system TEXT would not "
                "be read. Leave it out, or write it in front of a line."
            )
        self.turns = [{"role": "user", "content": SHORTEST}]
        self._begin(SHORTEST)
        self.turns = []

    def run(self) -> None:
        """Answer line after line until there is none."""
        self._greet()
        for line in self._lines():
            try:
                self._answer(line)
            except QuantDLLMError as error:
                print(f"quant-dllm chat: {error}", file=sys.stderr)
                if not sys.stdin.isatty():
                    raise
            except KeyboardInterrupt:
                print("stopped", file=sys.stderr)
            self.seed += 1

    def _greet(self) -> None:
        kind = "answers" if self.instructed else "has no chat template: it writes on from each line"
        if sys.stdin.isatty():
            print(f"{self.model.source.name} {kind}. Ctrl-C stops an answer, Ctrl-D ends the talk.",
                  file=sys.stderr)  # fmt: skip

    def _lines(self) -> Iterator[str]:
        if not sys.stdin.isatty():
            yield from (line.rstrip("\n") for line in sys.stdin if line.strip())
            return
        while True:
            try:
                line = input("\n> ")
            except (EOFError, KeyboardInterrupt):
                print(file=sys.stderr)
                return
            if line.strip():
                yield line

    def _answer(self, line: str) -> None:
        self.turns.append({"role": "user", "content": line})
        try:
            draft = self._begin(line)
            self._show(draft)
        except BaseException:  # the turn did not happen
            self.turns.pop()
            raise
        self.turns.append({"role": "assistant", "content": draft.text.strip()})

    def _begin(self, line: str) -> Draft:
        """Lay out the canvas; forget the oldest turns where there is no room for an answer."""
        context, tokenizer = self.model.source.config.context, self.model.tokenizer
        while True:
            prompt = self._prompt(line)
            used = len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
            room = context - used
            if room >= (self.length or LEAST) or len(self.turns) < 3 or not self.instructed:
                break
            del self.turns[:2]
        block = self.settings.get("block_length") or 1
        length = self.length or min(ANSWER, max(room, 1)) // block * block or block
        sampling = chosen_sampling(self.model, length, self.settings)
        return Draft.begin(
            self.model, prompt, sampling, length=length, seed=self.seed, watched=True
        )

    def _prompt(self, line: str) -> str:
        if not self.instructed:
            return line
        first: list[Message] = [{"role": "system", "content": self.system}] if self.system else []
        return chat_prompt(self.model.tokenizer, first + self.turns, self.model.source.name)

    def _show(self, draft: Draft) -> None:
        """Denoise, live where there is a terminal, and leave the text behind."""
        prompt = "" if self.instructed else draft.prompt
        if not sys.stdout.isatty():
            for _ in draft.steps():
                pass
            print(prompt + draft.text if prompt else draft.text.strip(), flush=True)
            return
        from rich.console import Console, Group
        from rich.live import Live
        from rich.text import Text

        console = Console()
        with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
            for _ in draft.steps():
                live.update(Group(drawn(draft, prompt), caption(draft)), refresh=True)
            live.update(Text(prompt + draft.text if prompt else draft.text.strip()), refresh=True)
        console.print(caption(draft))
