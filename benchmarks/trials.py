"""Try levers that the default recipe leaves out, and record what they gave.

    python benchmarks/trials.py tiny                          # all of them, on validation text
    python benchmarks/trials.py tiny --rotated                # methods, held-out, see rotation.py
    python benchmarks/trials.py second --second FOLDER --held-out --only outside-4

A trial is a recipe with a few fields changed (`levers.py`), measured as `results.py` measures.
Levers are chosen on validation text of `tiny`; what is said of the second model is on held-out text
alone.
Records are JSON lines in ``benchmarks/results/trials.jsonl``; what is there is not made again.
"""

import argparse
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

import records
import rotation
from levers import ROTATED, TRIALS
from quant_dllm.calibration.base import Denoise
from quant_dllm.calibration.mcs import MaskedCalibrationSimulation
from quant_dllm.evaluation.compare import Comparison
from quant_dllm.models.source import locate
from quant_dllm.recipe import CALIBRATIONS, Recipe
from quant_dllm.record import BASE
from quant_dllm.track import silent

RESULTS = records.RESULTS / "trials.jsonl"
WINDOWS, LENGTH, DRAWS = 32, 256, 4  # as in results.py


@dataclass(frozen=True, kw_only=True)
class Skewed(MaskedCalibrationSimulation):
    """Masked windows whose times crowd at one end: window i of n is shown at ((i + 1)/n)^power."""

    power: float = 1.0

    def views(
        self,
        windows: Int[Tensor, "n length"],
        mask_token_id: int,
        seed: int,
        denoise: Denoise | None = None,
    ):
        """Yield a masked view a window."""
        for i, window in enumerate(windows):
            t = ((i + 1) / len(windows)) ** self.power
            yield torch.where(self.hidden(len(window), t, seed + i), mask_token_id, window)


CALIBRATIONS.targets["mcs-skewed"] = "trials:Skewed"


def recipe(name: str) -> Recipe:
    """Return a trial's recipe under its name; a name that is none is a recipe of the package."""
    if name not in TRIALS:
        return Recipe.load(name)
    base, settings = Recipe.load(TRIALS[name].of), dict(TRIALS[name].settings)
    if named := settings.pop("calibration", None):  # another class with the same fields
        base = replace(base, calibration=replace(base.calibration, name=named))
    return replace(base.override(settings), name=name)


def run(model: str, folder: str, split: str, names: list[str], asked: argparse.Namespace) -> None:
    """Make what is missing, one seed of every trial before the next seed."""
    home = asked.second if asked.model == "second" else locate("tiny")
    ending = ".txt" if asked.model == "second" else ".txt.gz"
    there = {key(record) for record in known()}
    for seed in range(asked.seeds):
        wanted = [recipe(n) for n in names if (model, split, n, seed) not in there]
        if not wanted:
            continue
        comparison = Comparison(
            model=folder, recipes=wanted, seeds=[seed], sequences=WINDOWS, length=LENGTH,
            draws=DRAWS, track=silent, calibration=home / f"calibration{ending}",
            text=home / f"{split}{ending}",
        )  # fmt: skip
        for found in comparison.run({}):
            if found.name == BASE and (model, split, BASE, 0) in there:
                continue
            record = {
                "what": "trial", "model": model, "split": split, "trial": found.name,
                "recipe": found.recipe, "seed": found.seed, "evaluation": found.evaluation,
                "seconds": found.seconds, "machine": found.machine,
            }  # fmt: skip
            with RESULTS.open("a") as file:
                records.append(file, record | records.where())
            there.add(key(record))
            print(model, split, found.name, seed, found.evaluation["kl"], flush=True)


def key(record: dict[str, Any]) -> tuple[str, str, str, int]:
    """Say what a record is of."""
    return record["model"], record["split"], record["trial"], record["seed"]


def known() -> list[dict[str, Any]]:
    """Read what is recorded."""
    return records.read(RESULTS) if RESULTS.is_file() else []


def main() -> None:
    """Run trials of one model."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", choices=("tiny", "second"))
    parser.add_argument("--second", type=Path, help="folder made by second_model.py")
    parser.add_argument("--rotated", action="store_true", help="rotate the model, compare methods")
    parser.add_argument("--held-out", action="store_true", help="measure on held-out text")
    parser.add_argument("--only", action="append", help="a trial; again for more")
    parser.add_argument("--seeds", type=int, default=3)
    asked = parser.parse_args()
    plain = str(asked.second) if asked.model == "second" else "tiny"
    if not asked.rotated:
        split = "heldout" if asked.held_out else "validation"
        run(asked.model, plain, split, asked.only or list(TRIALS), asked)
        return
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / asked.model
        assert rotation.write(plain, out) < 1e-4, "the rotated model says something else"
        run(f"{asked.model}, rotated", str(out), "heldout", asked.only or list(ROTATED), asked)


if __name__ == "__main__":
    main()
