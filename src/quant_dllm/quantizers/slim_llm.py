"""SliM-LLM: GPTQ whose grids are calibrated with an eye to the salient weights of a group.

    minimise over τ   Σ_us |w − ŵ_τ|² + λ Σ_s |w − ŵ_τ|²,   for each row of a group

ŵ_τ is w on the levels from τ min w to τ max w; s are the salient weights, us the others. How many
bits a group gets is the other half of the method, see `precision/slim.py`.

Symbols:
    w  weights of a row in a group    τ  factor of its span    λ  emphasis
    D  diagonal of U, [in]; the salience of a weight is w²/D²

Reference: Huang et al., "SliM-LLM", arXiv:2405.14917, section 3.3 and algorithm 2.
"""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float, Int
from torch import Tensor

from quant_dllm.errors import RecipeError
from quant_dllm.rounding.grid import Grid, reach
from quant_dllm.rounding.sweep import Coded, column_by_column, sweep
from quant_dllm.statistics.importance import divisor, emphasis_mask, importance
from quant_dllm.statistics.layer import LayerStatistics, Needs
from quant_dllm.weights.affine import AffineWeight
from quant_dllm.weights.uniform import Group, UniformWeight


@dataclass(frozen=True, kw_only=True)
class SliMLLM:
    """Search each group's grid by salience-weighted error (SQC) inside GPTQ's sweep.

    Both the paper's equation 5 and the default of its code add the salient sum and the other one
    as they are, at which the salience cancels; ``emphasis`` above 1 does what the text says.

    A group of one bit has a level on each side of its mean, as in the code, at the mean distance
    from it (there: at the mean magnitude). Its zero point is not a whole number, so that a matrix
    with such a group stores float16 zero points. The paper's algorithm 1 feeds a whole block's
    error on; column by column is its text and its code.

    Attributes:
        spread: τ lies in 1 ± ``spread``.
        steps: Candidates for τ on each side of 1.
        sigmas: A weight is salient whose w²/D² is farther from the group's mean than this many
            deviations; 2 in the code.
        emphasis: λ, the weight of a salient weight's error.
        power: Power of an error; 2.4 in the code.
    """

    spread: float = 0.1
    steps: int = 50
    sigmas: float = 3.0
    emphasis: float = 1.0
    power: float = 2.0
    needs: ClassVar[Needs] = Needs.HESSIAN

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing."""
        if not 0 <= self.spread < 1 or self.steps < 1 or self.emphasis <= 0 or self.power <= 0:
            raise RecipeError(
                f"quantizer.spread {self.spread}, steps {self.steps}, emphasis {self.emphasis} "
                f"and power {self.power}: in [0, 1), at least 1, above 0 and above 0 are wanted."
            )

    def quantize(
        self,
        weight: Float[Tensor, "out in"],
        stats: LayerStatistics,
        bits: Int[Tensor, " blocks"],
        block_size: int,
    ) -> UniformWeight | AffineWeight:
        """Quantize with error feedback on searched grids."""
        U = stats.factor
        D = divisor(U, "factor")

        def code(block: Tensor, channels: slice, index: int) -> Coded[Group]:
            grid = self.fit(block, D[channels], int(bits[index]))
            values, error = column_by_column(
                block, U[channels, channels], lambda _, w: grid.round(w)
            )
            return Coded(grid.group(values), error)

        kind = AffineWeight if (bits == 1).any() else UniformWeight
        return kind.of(sweep(weight, U, block_size, code), block_size)

    def fit(self, block: Float[Tensor, "out block"], d: Float[Tensor, " block"], bits: int) -> Grid:
        """Return the grid of least salience-weighted error for each row."""
        if bits == 1:
            return Grid.two_level(block)
        weight = emphasis_mask(importance(block, d), self.emphasis, self.sigmas)
        low, high = reach(block)
        shares = (1 + self.spread * k / self.steps for k in range(-self.steps, self.steps + 1))

        def loss(errors: Tensor) -> Tensor:
            return (weight * errors.abs().pow(self.power)).sum(dim=1)

        return Grid.least(block, bits, ((low * s, high * s) for s in shares), loss)
