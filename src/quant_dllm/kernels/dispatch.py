"""Choose a backend: the first, from fastest to safest, that does not refuse.

A backend is a module with two functions: ``refuses(x, weight)`` gives the reason why it cannot take
a call, or ``None``; ``linear(x, weight)`` computes ``x Ŵᵀ``. One that keeps weights in a layout of
its own has a third, ``prepare(weight)``, which returns a `PreparedWeight`.
"""

import logging
import os
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from quant_dllm.errors import RequestError, hint
from quant_dllm.weights.base import QuantizedWeight
from quant_dllm.weights.compact import CompactWeight

logger = logging.getLogger(__name__)

BACKENDS = ("triton", "native", "grouped", "reference")
BY_NAME_ONLY = ("native_precise",)
FORCE = "QUANT_DLLM_KERNEL"
OUTSIDE = ("grouped", "finer")  # the kinds of embedding and head


@runtime_checkable
class PreparedWeight(Protocol):
    """A weight in the layout of one backend, in place of the neutral one."""

    @property
    def nbytes(self) -> int:
        """Count the bytes that it holds."""
        ...

    def refuses(self, x: Tensor) -> str | None:
        """Say why a call with this input cannot be taken."""
        ...

    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Compute ``x Ŵᵀ + bias``."""
        ...

    def restore(self) -> QuantizedWeight:
        """Return the neutral layout, bit for bit."""
        ...


@dataclass(frozen=True)
class Coded:
    """A compact weight in the layout of a backend, which holds its scales as floats.

    Attributes:
        inner: What the backend made of it.
        rest: The weight's fields but for the planes: the codes of its scales are not lost.
    """

    inner: PreparedWeight
    rest: dict[str, Any]

    @classmethod
    def of(cls, inner: PreparedWeight, weight: CompactWeight) -> "Coded":
        """Keep the codes beside a prepared weight."""
        rest = weight.tensors() | weight.layout()
        return cls(inner, {name: value for name, value in rest.items() if name != "planes"})

    @property
    def nbytes(self) -> int:
        """Count the bytes that it holds."""
        kept = (value.nbytes for value in self.rest.values() if isinstance(value, Tensor))
        return self.inner.nbytes + sum(kept)

    def refuses(self, x: Tensor) -> str | None:
        """Say why a call with this input cannot be taken."""
        return self.inner.refuses(x)

    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Compute ``x Ŵᵀ + bias``."""
        return self.inner.linear(x, bias)

    def restore(self) -> CompactWeight:
        """Return the neutral layout, bit for bit."""
        planes: Any = self.inner.restore()
        return CompactWeight(planes=planes.planes, **self.rest)


def linear(x: Float[Tensor, "*batch in"], weight: QuantizedWeight) -> Float[Tensor, "*batch out"]:
    """Compute ``x Ŵᵀ`` with the first backend that does not refuse."""
    return choose(x, weight).linear(x, weight)


def prepare(x: Float[Tensor, "*batch in"], weight: QuantizedWeight) -> PreparedWeight | None:
    """Bring a weight into the layout of the backend that takes inputs like ``x``.

    Returns:
        ``None`` where that backend reads the neutral layout.
    """
    backend = choose(x, weight)
    if not hasattr(backend, "prepare"):
        return None
    prepared = backend.prepare(weight)
    return Coded.of(prepared, weight) if isinstance(weight, CompactWeight) else prepared


def choose(x: Float[Tensor, "*batch in"], weight: QuantizedWeight) -> ModuleType:
    """Return the first backend that does not refuse, or the one that the environment names.

    Raises:
        RequestError: The environment names a backend that is unknown or refuses.
    """
    forced = forced_backend(weight)
    for name in (forced,) if forced else BACKENDS:
        backend = import_module(f"quant_dllm.kernels.{name}")
        reason = backend.refuses(x, weight)
        if reason is None:
            return backend
        if forced:
            raise RequestError(f"{FORCE} is {forced}, which refuses: {reason}. Unset it.")
        logger.debug("kernel %s refused: %s", name, reason)
        _warn_of_slowness(name, x.device.type, weight.kind, reason)
    raise AssertionError("the reference backend refuses nothing")


def refusals(x: Float[Tensor, "*batch in"], weight: QuantizedWeight) -> dict[str, str | None]:
    """Map backends, fastest first, to why they refuse, up to the first that does not."""
    found: dict[str, str | None] = {}
    for name in BACKENDS:
        found[name] = import_module(f"quant_dllm.kernels.{name}").refuses(x, weight)
        if found[name] is None:
            break
    return found


def forced_backend(weight: QuantizedWeight) -> str | None:
    """Read the name of the only backend to use; ``None`` leaves the choice to `choose`.

    Kernels are named for the blocks' layers: an embedding or a head is left to those that take it,
    but for the definition, which takes all.

    Raises:
        RequestError: There is no such backend.
    """
    forced = os.environ.get(FORCE, "").replace("-", "_")
    known = (*(name for name in BACKENDS if name != "grouped"), *BY_NAME_ONLY)
    if forced and forced not in known:
        raise RequestError(
            f"{FORCE} is {os.environ[FORCE]!r}.{hint(forced, known)} Known: {', '.join(known)}."
        )
    left = weight.kind in OUTSIDE and forced != "reference"
    return None if left else forced or None


def _warn_of_slowness(name: str, device: str, kind: str, reason: str) -> None:
    """Say once that binary weights, for which there are kernels, go without one."""
    fast = {"cpu": "native", "cuda": "triton"}.get(device)
    if name == fast and kind in ("binary", "compact") and not torch.compiler.is_compiling():
        _warn_once(name, reason)


@cache
def _warn_once(name: str, reason: str) -> None:
    logger.warning(
        "Packed layers are multiplied by the slow reference kernel: %s refuses, because %s.",
        name, reason,
    )  # fmt: skip
