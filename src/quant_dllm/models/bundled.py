"""The texts that come with ``tiny``: for it, for what was made of it, and for its like."""

from pathlib import Path
from typing import Literal

from quant_dllm.models.source import TINY, Source, locate

Split = Literal["calibration", "validation", "heldout"]


def bundled_text(source: Source, split: Split) -> Path | None:
    """Return a bundled text if the model cuts text as ``tiny`` does, else ``None``.

    The three splits share no story, and ``tiny`` was trained on none of them.
    """
    home = locate(TINY)
    theirs, ours = source.folder.path / "tokenizer.json", home / "tokenizer.json"
    if theirs.is_file() and theirs.read_bytes() == ours.read_bytes():
        return home / f"{split}.txt.gz"
    return None
