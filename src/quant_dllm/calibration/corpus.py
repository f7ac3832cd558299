"""Text to token windows, seeded.

A text file is UTF-8, plain or gzipped. Where it holds the tokenizer's end-of-text string, that
parts it into documents; otherwise it is one document. A file of JSON lines (``.jsonl``) has a
document a line, see `conversations`.
"""

import gzip
import hashlib
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from quant_dllm.calibration.conversations import written_out
from quant_dllm.errors import TextError


def read_text(path: Path) -> str:
    """Read a text file.

    Raises:
        TextError: It is not there, or not UTF-8 text.
    """
    try:
        data = path.read_bytes()
        return (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    except (OSError, EOFError, gzip.BadGzipFile) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise TextError(f"The text {path} cannot be read: {reason}. Check the path.") from None
    except UnicodeDecodeError:
        raise TextError(f"{path} is not UTF-8 text. Convert it, or name another file.") from None


def documents(path: Path, tokenizer: Any) -> list[list[int]]:
    """Encode the documents of a file, each followed by the end-of-text token, if there is one.

    Raises:
        TextError: The file cannot be read, or a line of it is no document.
    """
    text, end = read_text(path), tokenizer.eos_token
    if ".jsonl" in path.suffixes:
        parts = written_out(path, text, tokenizer)
    else:
        parts = text.split(end) if end else [text]
    parts = [part.strip().removesuffix(end or "") for part in parts]
    parts = [part for part in parts if part]
    encoded = tokenizer(parts, add_special_tokens=False, verbose=False)["input_ids"]
    return [[*ids, tokenizer.eos_token_id] if end else list(ids) for ids in encoded]


def token_windows(
    path: Path,
    tokenizer: Any,
    *,
    sequences: int,
    length: int,
    rule: Literal["packed", "long-documents"] = "packed",
    seed: int = 0,
    every: bool = False,
) -> Int[Tensor, "n length"]:
    """Cut ``sequences`` windows of ``length`` tokens out of a text, at random, none overlapping.

    Args:
        path: Text file, or JSON lines.
        tokenizer: As transformers has them.
        sequences: Windows.
        length: Tokens of a window.
        rule: ``"packed"``: documents are laid end to end and cut. ``"long-documents"``: a window is
            a random stretch of one document longer than it; documents come again, at another
            place, where there are fewer than windows.
        seed: Seed of the choice.
        every: Return all windows that there are, of packed documents; the first ``sequences`` are
            those that were chosen.

    Raises:
        TextError: The text is too short; the message says what it would give.
    """
    found = documents(path, tokenizer)
    dice = torch.Generator().manual_seed(seed)
    if rule == "packed":
        windows = _packed(path, found, sequences, length, dice)
        return windows if every else windows[:sequences]
    long = [doc for doc in found if len(doc) > length]
    if not long:
        raise TextError(
            f"{path} has no document of more than {length} tokens. Name a text of longer documents,"
            " lower calibration.length, or set calibration.windows=packed."
        )
    order = torch.randperm(len(long), generator=dice).tolist()
    windows = []
    for i in range(sequences):
        doc = long[order[i % len(long)]]
        at = int(torch.randint(len(doc) - length + 1, (), generator=dice))
        windows.append(doc[at : at + length])
    return torch.tensor(windows)


def _packed(
    path: Path, found: list[list[int]], sequences: int, length: int, dice: torch.Generator
) -> Int[Tensor, "n length"]:
    flat = torch.tensor([token for doc in found for token in doc])
    count = len(flat) // length
    if count < sequences:
        raise TextError(
            f"{path} holds {len(flat)} tokens, {count} windows of {length}; {sequences} are wanted."
            " Name a longer text, or ask for fewer or shorter windows."
        )
    windows = flat[: count * length].view(count, length)
    return windows[torch.randperm(count, generator=dice)]


def fingerprint(tokens: Int[Tensor, "n length"]) -> str:
    """Hash token windows: equal for equal tokens, whatever file they came from."""
    return hashlib.sha256(tokens.to(torch.int32).numpy().tobytes()).hexdigest()[:16]
