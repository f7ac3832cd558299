"""Numbers of a ``config.json`` that no network has, refused before one is built of them."""

from dataclasses import fields
from typing import Any

from quant_dllm.errors import ModelError
from quant_dllm.models.config import BackboneConfig, Mixture

MOST = {"blocks": 1024, "experts": 65536, "vocab": 1 << 26, "context": 1 << 30}
WIDEST = 1 << 24  # channels
MOST_FLOAT = 1e30
AT_LEAST_ONE = ("width", "blocks", "heads", "kv_heads", "mlp_width", "vocab", "context", "experts",
                "chosen", "groups", "chosen_groups", "head_width", "rotary_width")  # fmt: skip


def check_numbers(config: BackboneConfig, path: str) -> None:
    """Refuse numbers that are none, or beyond every network.

    Args:
        config: Read from a file.
        path: The file.

    Raises:
        ModelError: The first such number.
    """
    for part in filter(None, (config, config.mixture)):
        for field in fields(part):
            wrong = _wrong(field.name, field.type, getattr(part, field.name))
            if wrong:
                raise ModelError(f"{path} has {field.name} {wrong}. Download it again.")
    _check_shares(config, path)


def _wrong(name: str, kind: Any, value: Any) -> str | None:
    """Say what is wrong with one number, and what is wanted."""
    if kind is int or (name == "attention_block" and value is not None):
        least, most = int(name in AT_LEAST_ONE), MOST.get(name, WIDEST)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            return f"{_short(value)}; a whole number from {least} to {most} is wanted"
    if kind is float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return f"{_short(value)}; a number is wanted"
        if not 0 <= value < MOST_FLOAT:
            return f"{_short(value)}; a finite number is wanted"
    if kind is bool and not isinstance(value, bool):
        return f"{_short(value)}; true or false is wanted"
    return None


def _check_shares(config: BackboneConfig, path: str) -> None:
    """Refuse heads, and groups of experts, that are not equal."""
    if config.heads % config.kv_heads or config.head_width % 2:
        raise ModelError(
            f"{path} has {config.heads} heads of {config.head_width} channels over "
            f"{config.kv_heads} key-value heads; equal groups of even heads are wanted. "
            "Download it again."
        )
    mixture: Mixture | None = config.mixture
    if mixture and (mixture.chosen > mixture.experts or mixture.experts % mixture.groups):
        raise ModelError(
            f"{path} chooses {mixture.chosen} of {mixture.experts} experts in {mixture.groups} "
            "groups; equal groups and no more than there are is wanted. Download it again."
        )


def _short(value: Any) -> str:
    return repr(value)[:40]
