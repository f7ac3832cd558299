"""Which token is the mask: asked for in the end, never guessed."""

from typing import Any

from quant_dllm.errors import RequestError
from quant_dllm.models.source import Source


def resolve_mask_token(source: Source, given: int | None, tokenizer: Any) -> int:
    """Return the mask token.

    It is the one given, else that of ``config.json``, else one of the family's strings in the
    tokenizer, else the id that every published model of the family has.

    Raises:
        RequestError: None of them is there, the id is no row of the embedding, or it is the
            padding token.
    """
    config = source.folder.config
    found = given if given is not None else config.get("mask_token_id")
    if found is None and tokenizer is not None:
        known = tokenizer.get_vocab()
        found = next((known[t] for t in source.family.mask_tokens if t in known), None)
    if found is None and (source.family.mask_token_id or 0) < source.config.vocab:
        found = source.family.mask_token_id
    if found is None:
        strings = " or ".join(source.family.mask_tokens) or "known string"
        raise RequestError(
            f"{source.name} does not say which token is the mask: no mask_token_id in config.json, "
            f"no {strings} in the tokenizer. Pass --mask-token-id."
        )
    if not 0 <= found < source.config.vocab:
        raise RequestError(
            f"The mask token id {found} is no row of {source.name}'s embedding, which has "
            f"{source.config.vocab}. Pass the right one as --mask-token-id."
        )
    if found == config.get("pad_token_id"):
        raise RequestError(
            f"The mask token id {found} is {source.name}'s padding (pad_token_id in config.json); "
            "a token of its own is wanted. Pass the right one as --mask-token-id."
        )
    return found
