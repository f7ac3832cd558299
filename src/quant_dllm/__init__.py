"""Two-bit quantization of masked diffusion language models.

>>> import quant_dllm
>>> quant_dllm.quantize("tiny", "tiny-2bit")
>>> model = quant_dllm.load("tiny-2bit")
>>> print(quant_dllm.generate(model, "Once upon a time").text)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from quant_dllm.integrations import lazy

if TYPE_CHECKING:
    from quant_dllm.evaluation.evaluate import evaluate as evaluate
    from quant_dllm.generation.generate import generate as generate
    from quant_dllm.integrations.quantizer import QuantDLLMConfig as QuantDLLMConfig
    from quant_dllm.models.load import load as load
    from quant_dllm.pipeline.quantize import quantize as quantize
    from quant_dllm.planning.plan import plan as plan
    from quant_dllm.recipe import Recipe as Recipe

_FACE = {
    "QuantDLLMConfig": "quant_dllm.integrations.quantizer",
    "Recipe": "quant_dllm.recipe",
    "evaluate": "quant_dllm.evaluation.evaluate",
    "generate": "quant_dllm.generation.generate",
    "load": "quant_dllm.models.load",
    "plan": "quant_dllm.planning.plan",
    "quantize": "quant_dllm.pipeline.quantize",
}
__all__ = ["QuantDLLMConfig", "Recipe", "evaluate", "generate", "load", "plan", "quantize"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: ``import quant_dllm`` loads no torch."""
    if name not in _FACE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_FACE[name]), name)


def __dir__() -> list[str]:
    return __all__


lazy.install()
