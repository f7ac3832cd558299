"""How large a packed layer will be, without packing it.

A recipe's quantizer packs a few small random weights. What it stores is linear in the output
channels, and in the whole blocks of input channels, so that four such weights tell the size of any.
What BiLLM would store depends on the weights themselves: for it this is a guess.
"""

from dataclasses import dataclass
from functools import cache

import torch

from quant_dllm.pipeline.allocation import Budget
from quant_dllm.pipeline.job import Job
from quant_dllm.precision.sensitivity import MOST, SensitivityBasedBitAllocation
from quant_dllm.precision.uniform import Uniform
from quant_dllm.quantizers.outside import Grouped
from quant_dllm.statistics.layer import NO_STATISTICS, LayerStatistics, Needs
from quant_dllm.weights.base import QuantizedWeight

ROWS = (8, 16)
FEW_BLOCKS = 3


@dataclass(frozen=True)
class Size:
    """What one or many layers take.

    Attributes:
        weights: How many weights they have.
        code, stored: Bits, codes alone and with every scale.
        file: Bytes in the weight files.
    """

    weights: int | float = 0
    code: int | float = 0
    stored: int | float = 0
    file: int | float = 0

    def __add__(self, other: "Size") -> "Size":
        return Size(
            self.weights + other.weights, self.code + other.code,
            self.stored + other.stored, self.file + other.file,
        )  # fmt: skip

    def __mul__(self, times: int | float) -> "Size":
        return Size(self.weights * times, self.code * times, self.stored * times, self.file * times)

    def __sub__(self, other: "Size") -> "Size":
        return self + other * -1


class Sizes:
    """Sizes of layers under one job's recipe."""

    def __init__(self, job: Job):
        self.job = job
        self._packed = cache(self._pack)
        spent = isinstance(job.precision, SensitivityBasedBitAllocation)
        self.order = min(Budget.of(job).order, MOST) if spent else None

    def layer(self, out: int, inputs: int) -> Size:
        """Return the size of a layer [out, in].

        Where one budget is spent over all layers, each is counted as if it got the average: what
        is stored is linear in the planes of a block.
        """
        if self.order is None:
            return self._layer(out, inputs, None)
        low = min(int(self.order), MOST - 1)
        few, many = (self._layer(out, inputs, order) for order in (low, low + 1))
        return few + (many - few) * (self.order - low)

    def outside(self, out: int, inputs: int) -> int:
        """Return the bytes that an embedding or a head [out, in] takes, packed by the recipe."""
        assert isinstance(self.job.outside, Grouped), "others are not packed"
        return self.job.outside.stored_bytes(out, inputs)

    def _layer(self, out: int, inputs: int, order: int | None) -> Size:
        few, many = (self._rows(rows, inputs, order) for rows in ROWS)
        a_row = (many - few) * (1 / (ROWS[1] - ROWS[0]))
        return few + a_row * (out - ROWS[0])

    def _rows(self, rows: int, inputs: int, order: int | None) -> Size:
        block = self.job.precision.block_size
        whole, rest = divmod(inputs, block)
        if whole <= FEW_BLOCKS:
            return self._packed(rows, inputs, order)
        few = self._packed(rows, (FEW_BLOCKS - 1) * block + rest, order)
        one = self._packed(rows, FEW_BLOCKS * block + rest, order) - few
        return few + one * (whole - FEW_BLOCKS + 1)

    @property
    def names(self) -> int:
        """Count the tensors that are stored of a layer."""
        low = None if self.order is None else int(self.order)
        return len(self._weight(ROWS[0], self.job.precision.block_size, low).names)

    def _pack(self, rows: int, inputs: int, order: int | None) -> Size:
        packed = self._weight(rows, inputs, order)
        file = sum(tensor.nbytes for tensor in packed.tensors().values())
        count = rows * inputs
        return Size(count, count * packed.code_bits, count * packed.stored_bits, file)

    def _weight(self, rows: int, inputs: int, order: int | None) -> QuantizedWeight:
        dice = torch.Generator().manual_seed(rows)
        weight = torch.randn(rows, inputs, generator=dice)
        stats = _statistics(self.job, inputs, dice)
        policy = self.job.precision
        if isinstance(policy, Uniform):
            bits = policy.allocate(weight, stats)
        else:
            assert order, "its average was looked up"
            bits = torch.full((-(-inputs // policy.block_size),), order)
        return self.job.quantizer.quantize(weight, stats, bits, policy.block_size)


def _statistics(job: Job, inputs: int, dice: torch.Generator) -> LayerStatistics:
    if job.needs == Needs.NOTHING:
        return NO_STATISTICS
    x = torch.randn(4 * inputs, inputs, generator=dice)
    return LayerStatistics.gather([x], job.calibration.damping, job.needs, [x])
