"""Round to nearest: the baseline that looks at no data.

The clip is searched as in the published code of GPTQ (its ``mse``), but by squared errors.
"""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float, Int
from torch import Tensor

from quant_dllm.rounding.grid import Grid
from quant_dllm.rounding.sweep import Coded, sweep
from quant_dllm.statistics.layer import LayerStatistics, Needs
from quant_dllm.weights.uniform import Group, UniformWeight


@dataclass(frozen=True, kw_only=True)
class RTN:
    """A sweep that feeds nothing on.

    Attributes:
        search: Shrink each group's span to where its squared error is least.
    """

    search: bool = True
    needs: ClassVar[Needs] = Needs.NOTHING

    def quantize(
        self,
        weight: Float[Tensor, "out in"],
        stats: LayerStatistics,
        bits: Int[Tensor, " blocks"],
        block_size: int,
    ) -> UniformWeight:
        """Round each group to its own grid."""

        def code(block: Tensor, channels: slice, index: int) -> Coded[Group]:
            grid = Grid.fit(block, int(bits[index]), self.search)
            return Coded(grid.group(block), None)

        return UniformWeight.of(sweep(weight, None, block_size, code), block_size)
