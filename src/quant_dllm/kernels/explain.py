"""Which kernel would multiply, and why not a faster one."""

import os
from dataclasses import dataclass

import torch
from torch import Tensor

from quant_dllm.kernels import compile as compiler
from quant_dllm.kernels import dispatch, native, triton
from quant_dllm.weights.base import QuantizedWeight


@dataclass(frozen=True)
class Choice:
    """What happens to one weight.

    Attributes:
        kernel: The backend, and the unit of the native one: ``native (avx2)``.
        refused: Faster ones, and their reasons.
    """

    kernel: str
    refused: dict[str, str]


def explain(x: Tensor, weight: QuantizedWeight) -> Choice:
    """Say what `dispatch.choose` does with inputs like ``x``, and why.

    Raises:
        RequestError: The environment names a kernel that is unknown or refuses.
    """
    forced = dispatch.forced_backend(weight)
    if forced:
        dispatch.choose(x, weight)
        refused = {"others": f"{dispatch.FORCE} is {os.environ[dispatch.FORCE]}"}
        return Choice(_with_unit(forced), refused)
    found = dispatch.refusals(x, weight)
    kernel = next(name for name, reason in found.items() if reason is None)
    refused = {name: reason for name, reason in found.items() if reason is not None}
    if kernel == "native":
        refused |= _faster_units()
    return Choice(_with_unit(kernel), refused)


def machine() -> dict[str, str]:
    """List what this machine offers to kernels, and what is missing, in words."""
    facts = {"triton": triton.missing() or "can be used", "native": native.missing() or _origin()}
    if native.missing() is None:
        for name, lack in native.units().items():
            facts[f"native, {name}"] = f"this processor lacks {lack}" if lack else "can be used"
    facts["threads"] = str(torch.get_num_threads())
    for variable in (dispatch.FORCE, native.LEVEL):
        if os.environ.get(variable):
            facts[variable] = os.environ[variable]
    return facts


def _origin() -> str:
    path = compiler.find()
    return f"{'prebuilt' if path == compiler.PREBUILT else 'built on this machine'}, {path}"


def _with_unit(kernel: str) -> str:
    if kernel not in ("native", "native_precise", "grouped"):
        return kernel
    return f"{kernel} ({list(native.units())[native.unit()]})"


def _faster_units() -> dict[str, str]:
    """Say why no better unit of the native library is used."""
    found = {}
    for index, (name, lack) in enumerate(native.units().items()):
        if index == native.unit():
            break
        found[name] = f"this processor lacks {lack}" if lack else f"{native.LEVEL} names another"
    return found
