"""Quantize one model by several recipes and measure all of them with one yardstick."""

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from quant_dllm.checkpoint.folder import Folder
from quant_dllm.evaluation.evaluate import Evaluation, Yardstick, held_out
from quant_dllm.evaluation.identity import hash_code, hash_file, identify
from quant_dllm.evaluation.layers import LayerYardstick
from quant_dllm.models.bundled import bundled_text
from quant_dllm.models.load import load
from quant_dllm.models.model import DiffusionLM
from quant_dllm.pipeline.quantize import quantize
from quant_dllm.quantizers.base import ScalesInputs
from quant_dllm.recipe import PARTS, Recipe
from quant_dllm.record import BASE, ComparisonRecord, RunRecord
from quant_dllm.track import Track, silent


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What is compared, and how.

    Attributes:
        model: The 16-bit model: a folder, ``"tiny"``, or a Hugging Face id.
        recipes: Methods, by name, file or value.
        seeds: Seeds of the calibration; the evaluation has one seed for all.
        calibration, text: Text to calibrate on and to measure on; bundled ones if not given.
        sequences, length, draws, seed: Of the evaluation, see `evaluate`.
        mask_token_id, attention_block: What the model's folder does not say, see `load`.
        keep: Folder for the packed checkpoints; they are thrown away if not given.
    """

    model: str
    recipes: Sequence[str | Path | Recipe]
    seeds: Sequence[int] = (0, 1, 2)
    calibration: Path | None = None
    text: Path | None = None
    sequences: int = 64
    length: int = 256
    draws: int = 8
    seed: int = 0
    device: str = "cpu"
    mask_token_id: int | None = None
    attention_block: int | None = None
    keep: Path | None = None
    track: Track = silent

    def run(self, known: dict[str, ComparisonRecord]) -> Iterator[ComparisonRecord]:
        """Yield a record for the 16-bit model and for every recipe and seed.

        Args:
            known: Records that are there already, by identity; they are not made again.
        """
        recipes = [Recipe.load(recipe) for recipe in self.recipes]
        yield known.get(self._identity(None, 0)) or self._base_record()
        for recipe in recipes:
            for seed in self.seeds:
                yield known.get(self._identity(recipe, seed)) or self._record(recipe, seed)

    @cached_property
    def _base(self) -> DiffusionLM:
        return load(
            self.model, device=self.device, mask_token_id=self.mask_token_id,
            attention_block=self.attention_block,
        )  # fmt: skip

    @cached_property
    def _yardstick(self) -> Yardstick:
        windows = held_out(
            self._base, self.text, sequences=self.sequences, length=self.length, seed=self.seed
        )
        return Yardstick(
            windows=windows, base=self._base, draws=self.draws, seed=self.seed, track=self.track
        )

    @cached_property
    def _layers(self) -> LayerYardstick:
        return LayerYardstick(self._base, self._yardstick.windows, self.seed)

    def _identity(self, recipe: Recipe | None, seed: int) -> str:
        source = self._base.source
        calibration = self.calibration or bundled_text(source, "calibration")
        text = self.text or bundled_text(source, "heldout")
        return identify(
            code=hash_code(),
            weights=[hash_file(shard) for shard in source.folder.shards],
            config=source.folder.config,
            recipe=recipe and [recipe.name, {part: recipe.to_dict()[part] for part in PARTS}],
            seed=seed,
            calibration=calibration and hash_file(calibration),
            text=text and hash_file(text),
            measured=[self.sequences, self.length, self.draws, self.seed],
            device=self.device,
            told=[self.mask_token_id, self.attention_block],
        )

    def _base_record(self) -> ComparisonRecord:
        found = self._yardstick.measure(self._base)
        return self._to_record(None, 0, found, None, {})

    def _record(self, recipe: Recipe, seed: int) -> ComparisonRecord:
        with tempfile.TemporaryDirectory() as folder:
            out = (self.keep or Path(folder)) / f"{recipe.name}-seed{seed}"
            made = quantize(
                self.model, out, recipe, calibration=self.calibration, seed=seed,
                device=self.device, mask_token_id=self.mask_token_id,
                attention_block=self.attention_block, track=self.track,
            )  # fmt: skip
            model = load(out, device=self.device, mask_token_id=self.mask_token_id)
            scaled = isinstance(recipe.build()[2], ScalesInputs)
            errors = {} if scaled else self._layers.measure(model)
            found = self._yardstick.measure(model.unpack())
            return self._to_record(recipe, seed, found, made, errors, Folder(out).total_bytes)

    def _to_record(
        self,
        recipe: Recipe | None,
        seed: int,
        found: Evaluation,
        made: RunRecord | None,
        errors: dict[str, float],
        disk: int | None = None,
    ) -> ComparisonRecord:
        return ComparisonRecord(
            identity=self._identity(recipe, seed),
            model=Path(self.model).name if Path(self.model).is_dir() else self.model,
            recipe=recipe.to_dict() if recipe else {"name": BASE},
            seed=seed,
            evaluation=found.to_dict(),
            layer_errors=errors,
            bytes_on_disk=disk or self._base.source.folder.total_bytes,
            seconds=made.seconds if made else None,
            peak_memory=made.peak_memory if made else None,
            machine=f"{torch.get_num_threads()} threads, {self.device}",
        )


def read_records(path: Path) -> dict[str, ComparisonRecord]:
    """Read JSON lines, by identity; a line that is not whole is passed over."""
    found = {}
    if path.is_file():
        for line in path.read_text().splitlines():
            try:
                record = ComparisonRecord.from_dict(json.loads(line))
            except (ValueError, TypeError, KeyError):
                continue  # a run was stopped while it wrote, or another version wrote it
            found[record.identity] = record
    return found


def append_record(path: Path, record: ComparisonRecord) -> None:
    """Add a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(record.to_dict()) + "\n")
