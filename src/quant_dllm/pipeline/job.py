"""What a quantization is asked to do, checked in full before anything is read or written."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from quant_dllm.calibration.base import Calibration
from quant_dllm.calibration.corpus import fingerprint, token_windows
from quant_dllm.checkpoint.fingerprint import Fingerprint
from quant_dllm.checkpoint.writer import refuse_existing
from quant_dllm.errors import ModelError, RequestError, TextError
from quant_dllm.models.bundled import bundled_text
from quant_dllm.models.load import default_dtype, usable_device
from quant_dllm.models.mask_token import resolve_mask_token
from quant_dllm.models.model import load_tokenizer
from quant_dllm.models.source import Source, open_model
from quant_dllm.pipeline.writing import Writing
from quant_dllm.precision.uniform import Uniform
from quant_dllm.quantizers.base import Quantizer
from quant_dllm.quantizers.outside import Grouped, Unchanged
from quant_dllm.recipe import Recipe
from quant_dllm.statistics.layer import Needs


@dataclass(frozen=True)
class Job:
    """One quantization, ready to run.

    Attributes:
        windows: Token windows before masking; ``None`` where the recipe looks at no data.
        packed: Of what was packed so far.
    """

    source: Source
    recipe: Recipe
    calibration: Calibration
    precision: Uniform
    quantizer: Quantizer
    outside: Grouped | Unchanged
    windows: Int[Tensor, "n length"] | None
    mask_token_id: int
    seed: int
    device: torch.device
    packed: Fingerprint = field(default_factory=Fingerprint)
    _hash: Any = field(default_factory=hashlib.sha256)

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
        outside = recipe.outside.build("outside")
        source = open_model(model, attention_block)
        if source.folder.quantization:
            raise RequestError(
                f"{model} is quantized already (quantization_config in its config.json). "
                "Quantize the 16-bit model that it was made from."
            )
        source.check(source.empty())
        tokenizer = load_tokenizer(source)
        mask = resolve_mask_token(source, mask_token_id, tokenizer)
        windows = None
        if (quantizer.needs | precision.needs) != Needs.NOTHING:
            windows = _windows(source, calibration, tokenizer, text, seed)
        where = usable_device(device)
        return cls(
            source, recipe, calibration, precision, quantizer, outside, windows, mask, seed, where
        )

    @property
    def dtype(self) -> torch.dtype:
        """Say what the network computes in while it is calibrated."""
        return default_dtype(self.device)

    @property
    def needs(self) -> Needs:
        """Say what calibration must gather."""
        return self.quantizer.needs | self.precision.needs

    def read(self, name: str) -> Tensor:
        """Read a tensor of the 16-bit model by its name in the network; note it for `digest`.

        Raises:
            ModelError: It holds a number that is not finite.
        """
        tensor = self.source.tensor(name)
        if not torch.isfinite(tensor).all():
            raise ModelError(
                f"{self.source.family.upstream(name)} of {self.source.name} holds NaN or infinity; "
                "finite weights are wanted. Download the model again."
            )
        self._hash.update(name.encode())
        self._hash.update(tensor.contiguous().view(torch.uint8).numpy().data)
        return tensor

    def digest(self) -> str:
        """Hash all weights read so far."""
        return self._hash.hexdigest()[:16]

    def calibrated_on(self) -> dict[str, Any] | None:
        """Say which text the model was shown; ``None`` where the recipe looks at none."""
        if self.windows is None:
            return None
        sequences, length = self.windows.shape
        return {"fingerprint": fingerprint(self.windows), "sequences": sequences, "length": length}

    def views(self) -> tuple[Int[Tensor, "views length"], Int[Tensor, "views length"]]:
        """Return what the model is shown, and the text of each view.

        Where the model wrote something itself, that is the text; else it is the window.
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


def _windows(
    source: Source, calibration: Calibration, tokenizer: Any, text: Path | None, seed: int
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
        length=min(calibration.length, source.config.context),
    )  # fmt: skip
