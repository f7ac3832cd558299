"""Turn what is said into the prompt that an instruct model was trained on."""

from collections.abc import Sequence
from typing import Any

from quant_dllm.errors import RequestError

Message = dict[str, str]
"""``role`` ("system", "user" or "assistant") and ``content`` of one turn."""


def chat_prompt(tokenizer: Any, message: str | Sequence[Message], name: str) -> str:
    """Write turns by the tokenizer's chat template, up to where the answer begins.

    Args:
        tokenizer: The model's.
        message: One user's turn, or all turns so far.
        name: Of the model, for the error.

    Raises:
        RequestError: The tokenizer has no template, or the template refuses the turns.
    """
    if not has_chat_template(tokenizer):
        raise RequestError(
            f"{name} has no chat template (chat_template in its tokenizer); it is a base model, or "
            "the file was left out. Prompt it without --chat."
        )
    turns = [{"role": "user", "content": message}] if isinstance(message, str) else list(message)
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    except TemplateError as error:
        raise RequestError(f"The chat template of {name} refuses these turns: {error}") from None


def has_chat_template(tokenizer: Any) -> bool:
    """Tell whether a tokenizer knows how turns are written."""
    return bool(getattr(tokenizer, "chat_template", None))
