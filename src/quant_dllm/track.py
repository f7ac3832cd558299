"""How long work tells its progress: by an iterable that the caller may watch."""

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar, runtime_checkable

T = TypeVar("T")


@runtime_checkable
class Track(Protocol):
    """Pass ``items`` on, ``total`` of them, and show how far they are."""

    def __call__(self, items: Iterable[T], what: str, total: int) -> Iterator[T]:
        """Yield the items."""
        ...


def silent(items: Iterable[T], what: str, total: int) -> Iterator[T]:
    """Show nothing: what a library does unless it is asked."""
    return iter(items)
