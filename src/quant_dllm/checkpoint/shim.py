"""What makes transformers load our folders rightly, or not at all.

transformers passes over a quantization method that it does not know with a warning, and fills the
layers at random. So ``config.json`` names a file beside the weights for every class that it might
load: that file imports this package or says how to install it. A model type that transformers has a
class of its own for gets another name, since that class would win.
"""

from typing import Any

SHIM = "modeling_quant_dllm.py"
OURS = "quant_dllm_"  # before a model type that transformers knows
TAKEN = ("llama", "modernbert", "qwen2", "qwen3")

TEXT = '''"""The weights beside this file are packed; the package quant-dllm reads them."""

try:
    from quant_dllm.integrations.registration import classes
except ImportError as error:
    raise ImportError(
        "This model's weights are packed by quant-dllm, which is not installed. "
        "Run: pip install quant-dllm"
    ) from error

Config, Model = classes({model_type!r})
'''


def with_shim(config: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """Return a ``config.json`` that points at the shim, and the shim."""
    kind = str(config.get("model_type", ""))
    kind = OURS + kind if kind in TAKEN else kind
    module = SHIM.removesuffix(".py")
    models = ("AutoModel", "AutoModelForCausalLM", "AutoModelForMaskedLM")
    auto_map = {"AutoConfig": f"{module}.Config"} | dict.fromkeys(models, f"{module}.Model")
    return config | {"model_type": kind, "auto_map": auto_map}, TEXT.format(
        model_type=kind
    ).encode()
