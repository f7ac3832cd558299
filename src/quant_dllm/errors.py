"""Every error that this package raises on purpose: what was found, what was wanted, what to do."""

from collections.abc import Iterable
from difflib import get_close_matches


class QuantDLLMError(Exception):
    """Base class: ``except QuantDLLMError`` catches what we raise on purpose, and nothing else."""

    def __str__(self) -> str:
        """Return one line, whatever the names in somebody's file hold."""
        return " ".join(super().__str__().splitlines())


class RecipeError(QuantDLLMError, ValueError):
    """A recipe asks for something that no part of the package can do."""


class ModelError(QuantDLLMError, ValueError):
    """A source model is missing, incomplete, corrupt or of a kind that we do not know."""


class CheckpointError(QuantDLLMError, ValueError):
    """A packed checkpoint is damaged, from the future, or cannot be written."""


class TextError(QuantDLLMError, ValueError):
    """A text is missing, unreadable or too short for what was asked of it."""


class RequestError(QuantDLLMError, ValueError):
    """An argument of a call makes no sense for this model or this machine."""


class Interrupted(QuantDLLMError):
    """A run was asked to stop; what it has done so far is saved."""


class PeerLost(QuantDLLMError):
    """Another process of this run ended."""


class UnknownNameError(RecipeError, KeyError):
    """A table was asked for a name that it does not hold."""

    def __init__(self, kind: str, name: str, known: Iterable[str]):
        known = sorted(known)
        super().__init__(f"Unknown {kind} {name!r}.{hint(name, known)} Known: {', '.join(known)}.")

    def __str__(self) -> str:  # KeyError would print the repr
        return self.args[0]


def hint(name: str, known: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?``, or nothing where no known name is near."""
    near = get_close_matches(name, list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""
