"""The one interface that a rounding method has to fit."""

from typing import Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

from quant_dllm.statistics.layer import LayerStatistics, Needs
from quant_dllm.weights.base import QuantizedWeight


@runtime_checkable
class Quantizer(Protocol):
    """Turn one weight matrix into codes.

    A quantizer is a frozen dataclass: its fields are its hyper-parameters, it keeps no state
    between calls, reads no file, knows no model, and never sees an ``nn.Module``.
    """

    @property
    def needs(self) -> Needs:
        """Say what it reads of the calibration."""
        ...

    def quantize(
        self,
        weight: Float[Tensor, "out in"],
        stats: LayerStatistics,
        bits: Int[Tensor, " blocks"],
        block_size: int,
    ) -> QuantizedWeight:
        """Round ``weight`` with ``bits[b]`` bits in its ``b``-th block of ``block_size`` inputs."""
        ...


@runtime_checkable
class StoresPlanes(Protocol):
    """A quantizer that spends bits on scaled binary planes, each at the same price."""

    def plane_bits(self, out: int, width: int) -> int:
        """Return what one plane of a block [out, width] takes in a file, with its scales, bits."""
        ...


@runtime_checkable
class ScalesInputs(Protocol):
    """A quantizer that wants the input channels of a stage scaled before it rounds.

    The pipeline multiplies the weights' columns by the scale and divides what produces the inputs
    by it, where the architecture allows.
    """

    def input_scale(
        self, weights: list[Tensor], stats: LayerStatistics, bits: int, block_size: int
    ) -> Float[Tensor, " in"]:
        """Return the factor for each input channel of layers [out, in] that share their input."""
        ...
