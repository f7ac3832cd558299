"""The weights beside this file are packed; the package quant-dllm reads them."""

try:
    from quant_dllm.integrations.registration import classes
except ImportError as error:
    raise ImportError(
        "This model's weights are packed by quant-dllm, which is not installed. "
        "Run: pip install quant-dllm"
    ) from error

Config, Model = classes("llada")
