"""Tokenizers whose own code is another one's, renamed: known to transformers without it."""

from functools import cache

from transformers import AutoTokenizer
from transformers import Qwen2TokenizerFast as Qwen2Tokenizer  # type: ignore[attr-defined]

from quant_dllm.integrations.configs import config_class


@cache
def dream() -> type:
    """Make the class that Dream's folders ask for: Qwen2's."""
    return type("DreamTokenizer", (Qwen2Tokenizer,), {"__module__": __name__})


def register() -> None:
    """Register them; a second time changes nothing."""
    AutoTokenizer.register(config_class("Dream"), fast_tokenizer_class=dream(), exist_ok=True)
