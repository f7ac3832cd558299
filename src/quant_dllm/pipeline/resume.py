"""Go on with an unfinished run, by its output folder alone."""

from pathlib import Path
from typing import Any

from quant_dllm.pipeline.journal import saved_request
from quant_dllm.pipeline.quantize import quantize
from quant_dllm.recipe import PARTS, Choice, Recipe
from quant_dllm.record import RunRecord
from quant_dllm.track import Track, silent


def resume(out: str | Path, *, max_memory: int | None = None, track: Track = silent) -> RunRecord:
    """Go on with an unfinished run as it was asked for; see `quantize`.

    Args:
        out: Its output folder.
        max_memory: See `quantize`; it changes nothing that is computed.
        track: Watches the progress.

    Raises:
        RequestError: There is no such run, or it is finished, or an input was changed since.
    """
    request = saved_request(Path(out))
    recipe = saved_recipe(request.pop("recipe"))
    return quantize(out=out, recipe=recipe, max_memory=max_memory, track=track, **request)


def saved_recipe(raw: dict[str, Any]) -> Recipe:
    """Read what `Recipe.to_dict` gave."""
    parts = {
        part: Choice(name=raw[part]["name"], options=_options(raw[part]))
        for part in PARTS
        if raw.get(part)
    }
    return Recipe(name=raw["name"], about=raw["about"], **parts)


def _options(part: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in part.items() if key != "name"}
