"""Texts and conversations of a file of JSON lines, as instruct models are trained on them.

A line is ``{"text": …}``, or ``{"messages": [{"role": …, "content": …}, …]}``, which the chat
template of the model writes out, answers included.
"""

import json
from pathlib import Path
from typing import Any

from quant_dllm.errors import TextError, hint

KEYS = ("messages", "text")


def written_out(path: Path, text: str, tokenizer: Any) -> list[str]:
    """Return a document a line.

    Args:
        path: Of the file, for errors.
        text: What is in it.
        tokenizer: As transformers has them; it knows the template.

    Raises:
        TextError: A line that is neither, or a conversation where there is no template.
    """
    lines = enumerate(text.split("\n"), 1)  # a string may hold other separators of lines
    return [_document(f"{path}, line {i}", line, tokenizer) for i, line in lines if line.strip()]


def _document(place: str, line: str, tokenizer: Any) -> str:
    try:
        found = json.loads(line)
    except json.JSONDecodeError as error:
        raise TextError(f"{place} is not JSON: {error}. Mend the line, or leave it out.") from None
    if isinstance(found, dict) and isinstance(found.get("text"), str):
        return found["text"]
    if isinstance(found, dict) and isinstance(found.get("messages"), list):
        return _conversation(place, found["messages"], tokenizer)
    keys = list(found) if isinstance(found, dict) else []
    meant = "".join(hint(key, KEYS) for key in keys[:1])
    raise TextError(
        f"{place} has {', '.join(map(repr, keys)) or 'no keys'}.{meant} "
        '{"text": "…"} or {"messages": [{"role": "user", "content": "…"}, …]} is wanted.'
    )


def _conversation(place: str, turns: list[Any], tokenizer: Any) -> str:
    if not getattr(tokenizer, "chat_template", None):
        raise TextError(
            f"{place} is a conversation, and the model has no chat template (chat_template in its "
            'tokenizer): it is a base model, or the file was left out. Name plain text, or {"text"'
            ": …} lines."
        )
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template(turns, tokenize=False)
    except (TemplateError, TypeError, AttributeError, KeyError) as error:
        raise TextError(
            f"{place} cannot be written by the chat template: {error}. Turns of role and content "
            "are wanted."
        ) from None
