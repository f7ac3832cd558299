"""Turn what a user says into the prompt that an instruct model was trained on."""

from typing import Any

from quant_dllm.errors import RequestError


def chat_prompt(tokenizer: Any, message: str, name: str) -> str:
    """Write one user's turn by the tokenizer's chat template, up to where the answer begins.

    Raises:
        RequestError: The tokenizer has no template.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise RequestError(
            f"{name} has no chat template (chat_template in its tokenizer); it is a base model, or "
            "the file was left out. Prompt it without --chat."
        )
    turn = [{"role": "user", "content": message}]
    return tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
