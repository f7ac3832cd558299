"""GPTQ: round left to right and let the columns on the right make up for the error.

Reference: Frantar et al., "GPTQ", arXiv:2210.17323, algorithm 1; groups and grids as in the
authors' code: asymmetric, minimum to maximum, fitted to a group when the sweep reaches it. Two
things differ from that code. Codes are chosen on the scale that is stored, rounded to float16. And
the column of an input that was always zero is rounded like others; there it becomes zero.
"""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float, Int
from torch import Tensor

from quant_dllm.rounding.grid import Grid
from quant_dllm.rounding.sweep import Coded, column_by_column, sweep
from quant_dllm.statistics.layer import LayerStatistics, Needs
from quant_dllm.weights.uniform import Group, UniformWeight


@dataclass(frozen=True, kw_only=True)
class GPTQ:
    """Sweep with in-block feedback on evenly spaced levels.

    Attributes:
        search: Shrink each group's span to where its squared error is least (the authors' ``mse``,
            which takes the power 2.4).
        static_groups: Fit a group to the original weights, not to those that the sweep reaches.
    """

    search: bool = False
    static_groups: bool = False
    needs: ClassVar[Needs] = Needs.HESSIAN

    def quantize(
        self,
        weight: Float[Tensor, "out in"],
        stats: LayerStatistics,
        bits: Int[Tensor, " blocks"],
        block_size: int,
    ) -> UniformWeight:
        """Quantize with error feedback."""
        U = stats.factor

        def code(block: Tensor, channels: slice, index: int) -> Coded[Group]:
            fitted = weight[:, channels] if self.static_groups else block
            grid = Grid.fit(fitted, int(bits[index]), self.search)
            values, error = column_by_column(
                block, U[channels, channels], lambda _, w: grid.round(w)
            )
            return Coded(grid.group(values), error)

        return UniformWeight.of(sweep(weight, U, block_size, code), block_size)
