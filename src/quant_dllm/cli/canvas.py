"""A canvas in the terminal: hidden tokens as shaded cells, written ones by how sure they are.

Colours go from orange (unsure) over none to blue (sure), which readers with any colour vision can
tell apart. Without colours, unsure tokens are underlined and sure ones plain.
"""

from itertools import groupby
from typing import Any

from rich.text import Text

from quant_dllm.generation.draft import Draft

HIDDEN = "░░"
UNSURE, DOUBTED, SURE = 0.35, 0.6, 0.85
STYLES = {
    "unsure": "underline black on color(214)",
    "doubted": "underline color(214)",
    "plain": "",
    "sure": "color(39)",
    "hidden": "dim",
}


def style(sure: float) -> str:
    """Name the style of a token."""
    for name, edge in (("unsure", UNSURE), ("doubted", DOUBTED), ("plain", SURE)):
        if sure < edge:
            return name
    return "sure"


def drawn(draft: Draft, prompt: str = "") -> Text:
    """Draw the answer as it stands."""
    text = Text(prompt, style="bold")
    cells = [("hidden" if piece is None else style(sure), piece or HIDDEN)
             for piece, sure in draft.cells()]  # fmt: skip
    for name, group in groupby(cells, key=lambda cell: cell[0]):
        text.append("".join(piece for _, piece in group), style="not bold " + STYLES[name])
    return text


def caption(draft: Draft) -> Text:
    """Say how far the answer is, and what the colours mean."""
    facts: dict[str, Any] = draft.facts()
    count = len(draft.token_ids)
    speed = count / max(facts["seconds"], 1e-9)
    text = Text(f"step {facts['steps']} of {facts['planned']} · {count} tokens · "
                f"{facts['seconds']:.1f} s · {speed:.1f} tokens/s  ", style="dim")  # fmt: skip
    for name, words in (("unsure", "unsure"), ("doubted", "in doubt"), ("sure", "sure")):
        text.append(words, style=STYLES[name])
        text.append(" ")
    return text
