"""What a quantization is asked to do, checked in full before anything is read or written."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, get_args, get_type_hints

import torch
from jaxtyping import Int
from torch import Tensor

from quant_dllm.calibration.base import Calibration
from quant_dllm.calibration.corpus import fingerprint, token_windows
from quant_dllm.checkpoint.fingerprint import Fingerprint
from quant_dllm.checkpoint.writer import refuse_existing
from quant_dllm.distributed import local_device, world
from quant_dllm.errors import ModelError, RecipeError, RequestError, TextError
from quant_dllm.models.bundled import bundled_text
from quant_dllm.models.load import default_dtype, usable_device
from quant_dllm.models.mask_token import resolve_mask_token
from quant_dllm.models.model import load_tokenizer
from quant_dllm.models.source import Source, open_model
from quant_dllm.pipeline.writing import Writing
from quant_dllm.precision.sensitivity import SensitivityBasedBitAllocation
from quant_dllm.precision.uniform import Uniform
from quant_dllm.quantizers.base import Quantizer, StoresPlanes
from quant_dllm.quantizers.outside import Grouped, Unchanged
from quant_dllm.recipe import Choice, Recipe
from quant_dllm.statistics.layer import Needs
from quant_dllm.tuning.block_by_block import BlockByBlock
from quant_dllm.tuning.end_to_end import EndToEnd
from quant_dllm.tuning.none import NoTuning
from quant_dllm.weights.binary import SignPlanes


@dataclass(frozen=True)
class TuningText:
    """Windows to tune on, none of them calibrated on.

    Attributes:
        validation: Windows to stop by; no other window overlaps them.
    """

    windows: Int[Tensor, "n length"]
    validation: Int[Tensor, "v length"]

    @property
    def fingerprint(self) -> str:
        """Hash what is learned from."""
        return fingerprint(self.windows)


COPIED = ("tokenizer*", "special_tokens_map.json", "vocab*", "merges.txt", "added_tokens.json",
          "generation_config.json", "chat_template*")  # fmt: skip


@dataclass(frozen=True)
class Job:
    """One quantization, ready to run.

    Attributes:
        windows: Token windows before masking; ``None`` where the recipe looks at no data.
        block_tuning: How the scales of each block are tuned by themselves; ``None``: not at all.
        tuning, tuning_text: How all scales are tuned, and on what; ``None`` where they are not.
        packed: Of what was packed so far.
        base: Of the 16-bit weights that were read so far.
    """

    source: Source
    recipe: Recipe
    calibration: Calibration
    precision: Uniform | SensitivityBasedBitAllocation
    quantizer: Quantizer
    outside: Grouped | Unchanged
    windows: Int[Tensor, "n length"] | None
    mask_token_id: int
    seed: int
    device: torch.device
    block_tuning: BlockByBlock | None = None
    tuning: EndToEnd | None = None
    tuning_text: TuningText | None = None
    packed: Fingerprint = field(default_factory=Fingerprint)
    base: Fingerprint = field(default_factory=Fingerprint)

    @classmethod
    def prepare(
        cls,
        model: str | Path,
        recipe: Recipe,
        out: Path,
        *,
        text: Path | None,
        seed: int,
        device: str | torch.device,
        mask_token_id: int | None,
        attention_block: int | None = None,
    ) -> "Job":
        """Check everything that can be checked.

        Raises:
            QuantDLLMError: One of its kinds; see `quantize`.
        """
        refuse_existing(out)
        calibration, precision, quantizer = recipe.build()
        if isinstance(precision, SensitivityBasedBitAllocation):
            _check_allocation(recipe, quantizer)
        outside = recipe.outside.build("outside")
        block_tuning = _tuning(recipe, "block_tuning", quantizer)
        tuning = _tuning(recipe, "tuning", quantizer)
        _check_text(recipe, calibration)
        source = open_model(model, attention_block)
        if source.folder.quantization:
            raise RequestError(
                f"{model} is quantized already (quantization_config in its config.json). "
                "Quantize the 16-bit model that it was made from."
            )
        source.check(source.empty())
        tokenizer = load_tokenizer(source)
        mask = resolve_mask_token(source, mask_token_id, tokenizer)
        windows = tuning_text = None
        needs = quantizer.needs | precision.needs
        if tuning or block_tuning or outside.reads_text or needs != Needs.NOTHING:
            windows = _windows(source, calibration, tokenizer, text, seed, every=bool(tuning))
        if tuning and windows is not None:
            windows, tuning_text = _part(windows, calibration.sequences, tuning)
        return cls(
            source, recipe, calibration, precision, quantizer, outside, windows, mask, seed,
            local_device(usable_device(device)), block_tuning, tuning, tuning_text,
        )  # fmt: skip

    @property
    def dtype(self) -> torch.dtype:
        """Say what the network computes in while it is calibrated."""
        return default_dtype(self.device)

    @property
    def needs(self) -> Needs:
        """Say what calibration must gather."""
        asked = self.quantizer.needs | self.precision.needs
        if self.block_tuning:
            asked |= Needs.DRIFT
        return asked | self.outside.needs if self.head_behind else asked

    @cached_property
    def head_behind(self) -> bool:
        """Tell whether the head is rounded by what it receives behind the blocks."""
        return bool(self.outside.needs) and "head" in self.source.empty().outside

    @property
    def to_the_end(self) -> bool:
        """Tell whether the text passes the last block too."""
        return self.head_behind or self.block_tuning is not None

    def read(self, name: str) -> Tensor:
        """Read a tensor of the 16-bit model by its name in the network; note it in `base`.

        Raises:
            ModelError: It holds a number that is not finite.
        """
        tensor = self.source.tensor(name)
        if not torch.isfinite(tensor).all():
            raise ModelError(
                f"{self.source.family.upstream(name)} of {self.source.name} holds NaN or infinity; "
                "finite weights are wanted. Download the model again."
            )
        self.base.add(name, tensor)
        return tensor

    def copied(self) -> list[Path]:
        """List the files of the 16-bit model that go into the checkpoint as they are."""
        folder = self.source.folder.path
        found = (file for pattern in COPIED for file in folder.glob(pattern))
        return sorted(file for file in found if file.is_file())

    def request(
        self, model: str, text: Path | None, seed: int, attention_block: int | None
    ) -> dict[str, Any]:
        """Return the arguments of `quantize`, in JSON's types and independent of the folder."""
        here = Path(model)
        return {
            "model": str(here.absolute()) if here.is_dir() else model,
            "recipe": self.recipe.to_dict(),
            "calibration": None if text is None else str(text.absolute()),
            "seed": seed,
            "device": str(self.device),
            "mask_token_id": self.mask_token_id,
            "attention_block": attention_block,
        }

    def calibrated_on(self) -> dict[str, Any] | None:
        """Say which text the model was shown; ``None`` where the recipe looks at none."""
        if self.windows is None:
            return None
        sequences, length = self.windows.shape
        return {"fingerprint": fingerprint(self.windows), "sequences": sequences, "length": length}

    @cached_property
    def views(self) -> tuple[Int[Tensor, "views length"], Int[Tensor, "views length"]]:
        """What the model is shown, and the text of each view.

        Where the model wrote something itself, that is the text; else it is the window. It writes
        once, whoever asks.
        """
        assert self.windows is not None, "a recipe that looks at no data shows none"
        writing = Writing(
            self.source.folder.path, self.device, self.mask_token_id,
            self.source.config.attention_block,
        )  # fmt: skip
        views = torch.stack(
            list(self.calibration.views(self.windows, self.mask_token_id, self.seed, writing))
        )
        windows = self.windows.repeat_interleave(len(views) // len(self.windows), dim=0)
        return views, torch.where(views == self.mask_token_id, windows, views)


def _check_allocation(recipe: Recipe, quantizer: Quantizer) -> None:
    """Refuse to spend bits by sensitivity on what is not rounded to planes."""
    if not isinstance(quantizer, StoresPlanes):
        raise RecipeError(
            f"precision is sensitivity, which spends its budget on binary planes; "
            f"{recipe.quantizer.name} stores none. Set precision=uniform, or name --recipe "
            "quant-dllm-2bit."
        )


def _tuning(recipe: Recipe, part: str, quantizer: Quantizer) -> Any:
    """Build a way to tune, `None` where nothing is; refuse what has no scales of planes."""
    choice: Choice = getattr(recipe, part)
    built = choice.build(part)
    if isinstance(built, NoTuning):
        return None
    stored = get_type_hints(quantizer.quantize)["return"]
    if not all(issubclass(kind, SignPlanes) for kind in get_args(stored) or [stored]):
        raise RecipeError(
            f"{part} is {choice.name}, which tunes the scales of binary planes; "
            f"{recipe.quantizer.name} stores none. Set {part}=none or quantizer=daq."
        )
    return built


def _check_text(recipe: Recipe, calibration: Calibration) -> None:
    """Refuse to tune on text that was calibrated on, or a block on too little to look at it."""
    if recipe.tuning.name != "none" and calibration.windows != "packed":
        raise RecipeError(
            f"calibration.windows is {calibration.windows}, whose windows overlap; tuning wants "
            "text of its own. Set calibration.windows=packed or tuning=none."
        )
    least = 2 * world()
    if recipe.block_tuning.name != "none" and calibration.sequences < least:
        raise RecipeError(
            f"calibration.sequences is {calibration.sequences}; to tune a block on some windows "
            f"and look at it on others, {least} are wanted at least."
        )


def _part(
    windows: Tensor, sequences: int, tuning: EndToEnd
) -> tuple[Int[Tensor, "n length"], TuningText]:
    """Part all windows of a text in those to calibrate on, to stop by, and to tune on."""
    rest = windows[sequences:]
    length = min(tuning.length, rest.shape[1])
    pieces = rest[:, : rest.shape[1] // length * length].reshape(-1, length)
    wanted = tuning.validation + tuning.batch
    if len(pieces) < wanted:
        raise TextError(
            f"The text has {len(windows)} windows of {windows.shape[1]} tokens, {sequences} of "
            f"them to calibrate on; {len(pieces)} of {length} are left to tune on, at least "
            f"{wanted} are wanted. Name a longer text, or set tuning=none."
        )
    validation, learned = pieces[: tuning.validation], pieces[tuning.validation :]
    return windows[:sequences], TuningText(learned[: tuning.windows], validation)


def _windows(
    source: Source,
    calibration: Calibration,
    tokenizer: Any,
    text: Path | None,
    seed: int,
    *,
    every: bool,
) -> Int[Tensor, "n length"]:
    path = text or bundled_text(source, "calibration")
    if path is None:
        raise TextError(
            f"{source.name} has no calibration text of its own; text like what it will write is "
            "wanted. Pass --calibration FILE."
        )
    if tokenizer is None:
        raise ModelError(
            f"{source.folder.path} has no tokenizer, so that text cannot be read. "
            "Copy tokenizer.json beside the weights."
        )
    return token_windows(
        path, tokenizer, sequences=calibration.sequences, rule=calibration.windows, seed=seed,
        every=every, length=min(calibration.length, source.config.context),
    )  # fmt: skip
