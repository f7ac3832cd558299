"""What a quantizer returns: a weight that knows its tensors and its own size."""

from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor
from typing_extensions import Protocol, runtime_checkable  # asks no property for its value

from quant_dllm.registry import Registry

WEIGHTS = Registry(
    "kind of weight",
    {
        "affine": "quant_dllm.weights.affine:AffineWeight",
        "binary": "quant_dllm.weights.binary:BinaryWeight",
        "compact": "quant_dllm.weights.compact:CompactWeight",
        "finer": "quant_dllm.weights.finer:FinerWeight",
        "grouped": "quant_dllm.weights.grouped:GroupedWeight",
        "uniform": "quant_dllm.weights.uniform:UniformWeight",
        "simulated": "quant_dllm.weights.simulated:SimulatedWeight",
    },
)


@runtime_checkable
class QuantizedWeight(Protocol):
    """A coded weight matrix [out, in], made of what a checkpoint stores of it.

    ``type(w)(**w.tensors(), **w.layout())`` is ``w`` again.

    Attributes:
        kind: Its name in `WEIGHTS`.
        names: Names of its tensors.
    """

    kind: ClassVar[str]
    names: ClassVar[tuple[str, ...]]

    @property
    def out_features(self) -> int:
        """Count the output channels."""
        ...

    @property
    def in_features(self) -> int:
        """Count the input channels."""
        ...

    @property
    def code_bits(self) -> float:
        """Bits of the codes alone, a weight."""
        ...

    @property
    def stored_bits(self) -> float:
        """Bits of all that is stored, a weight: codes, scales, zero points, orders."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """Name the stored tensors."""
        ...

    def layout(self) -> dict[str, Any]:
        """Describe, in JSON's types, what the tensors do not tell."""
        ...

    def scale_rows(self, s: Float[Tensor, " out"]) -> "QuantizedWeight":
        """Multiply the output channels; only stored scales change."""
        ...

    def dequantize(self, rows: slice = slice(None)) -> Float[Tensor, "some in"]:
        """Return the values that the codes of these rows stand for, float32."""
        ...
