"""What every calibration says: how much text, and in what order layers see it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from jaxtyping import Int
from torch import Tensor

from quant_dllm.errors import RecipeError


@runtime_checkable
class Denoise(Protocol):
    """The 16-bit model, writing."""

    def __call__(
        self, prompt: Int[Tensor, "n prompt"], length: int, steps: int, seed: int
    ) -> Iterator[Int[Tensor, "n canvas"]]:
        """Yield the canvas before the first step, and after every step."""
        ...


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Show token windows to the model; subclasses say what is hidden in them.

    Attributes:
        sequences: Windows of text.
        length: Tokens in a window; the model's context where that is shorter.
        windows: ``"packed"``: documents laid end to end are cut into windows.
            ``"long-documents"``: each window lies within one document longer than it (release).
        order: ``"standard"``: layers are quantized as they run. ``"outputs-first"``: a block's
            output projections come before its other layers (the release, on LLaDA).
        damping: Fraction of the Hessian's mean diagonal added to its diagonal (dimensionless).
    """

    sequences: int = 128
    length: int = 4096
    windows: Literal["packed", "long-documents"] = "packed"
    order: Literal["standard", "outputs-first"] = "standard"
    damping: float = 0.01

    def __post_init__(self) -> None:
        """Refuse what no text can give."""
        if self.sequences < 1 or self.length < 2:
            raise RecipeError(
                f"calibration.sequences is {self.sequences} and length {self.length}; "
                "at least one sequence of two tokens is wanted."
            )
        if not self.damping > 0:
            raise RecipeError(f"calibration.damping is {self.damping}; it must be above 0.")

    def views(
        self,
        windows: Int[Tensor, "n length"],
        mask_token_id: int,
        seed: int,
        denoise: Denoise | None = None,
    ) -> Iterator[Int[Tensor, " length"]]:
        """Yield what the model is shown, made of the whole corpus; ``denoise`` lets it write.

        Each window has as many views as every other, and they follow each other.
        """
        raise AssertionError("a calibration says what it hides")
