"""From token ids to text: a whole answer, or one token as it reads inside a text."""

from collections.abc import Set
from typing import Any
from weakref import WeakKeyDictionary

_KNOWN: "WeakKeyDictionary[Any, Pieces]" = WeakKeyDictionary()


class Pieces(dict[int, str]):
    """The text of single tokens, leading spaces kept; a token cut inside a character is ``�``."""

    def __init__(self, tokenizer: Any):
        super().__init__()
        self.tokenizer = tokenizer
        self.before = tokenizer("a", add_special_tokens=False)["input_ids"]
        self.offset = len(tokenizer.decode(self.before))

    @classmethod
    def of(cls, tokenizer: Any) -> "Pieces":
        """Return the table of a tokenizer, the same one every time."""
        return _KNOWN.setdefault(tokenizer, cls(tokenizer))

    def __missing__(self, token: int) -> str:
        piece = self.tokenizer.decode([*self.before, token])[self.offset :]
        self[token] = piece
        return piece


def decode(tokenizer: Any, prompt: list[int], answer: list[int], ends: Set[int]) -> str:
    """Return the answer up to the first token that ends it, as it reads behind the prompt."""
    stop = next((i for i, token in enumerate(answer) if token in ends), len(answer))
    before = tokenizer.decode(prompt, skip_special_tokens=True)
    whole = tokenizer.decode(prompt + answer[:stop], skip_special_tokens=True)
    return whole[len(before) :]
