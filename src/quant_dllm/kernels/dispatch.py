"""Choose a backend: the first, from fastest to safest, that does not refuse.

A backend is a module with two functions: ``refuses(x, weight)`` gives the reason why it cannot take
a call, or ``None``; ``linear(x, weight)`` computes ``x Ŵᵀ``.
"""

import logging
from importlib import import_module

from jaxtyping import Float
from torch import Tensor

from quant_dllm.weights.base import QuantizedWeight

logger = logging.getLogger(__name__)

BACKENDS = ("reference",)


def linear(x: Float[Tensor, "*batch in"], weight: QuantizedWeight) -> Float[Tensor, "*batch out"]:
    """Compute ``x Ŵᵀ`` with the first backend that does not refuse."""
    for name in BACKENDS:
        backend = import_module(f"quant_dllm.kernels.{name}")
        reason = backend.refuses(x, weight)
        if reason is None:
            return backend.linear(x, weight)
        logger.debug("kernel %s refused: %s", name, reason)
    raise AssertionError("the reference backend refuses nothing")
