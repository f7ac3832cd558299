"""AWQ: scale up the input channels that activations are large in, then round to nearest.

    s = m^α / √(max m^α · min m^α),   with the α of least Σ tr(E H Eᵀ),   E = W − Q(W S) S⁻¹

over the layers that share an input. W S is what is rounded; S⁻¹ goes into what produces the input.
Then each row of a group is clipped to ± the share of its largest weight of least output error.

Symbols:
    W  weight, [out, in]    H  mean of x xᵀ, [in, in]    m  mean of |x|, [in]
    s  input scale, [in]    S  its diagonal matrix       Q  rounding to nearest, unclipped
    E  error of the weight  α  how much of m the scale follows

Reference: Lin et al., "AWQ", arXiv:2306.00978, sections 3.2 and 4, and the authors' llm-awq.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from quant_dllm.errors import RecipeError
from quant_dllm.rounding.grid import Grid, Span, reach
from quant_dllm.rounding.sweep import Coded, spans, sweep
from quant_dllm.statistics.layer import LayerStatistics, Needs
from quant_dllm.weights.uniform import Group, UniformWeight

QUIETEST = 1e-4  # of the loudest channel's mean: what a dead channel counts as


@dataclass(frozen=True, kw_only=True)
class AWQ:
    """Search a scale for the inputs of a stage, then a clip for each group.

    It differs from llm-awq in five ways. Errors are those of the layers' own outputs, by H; there
    the scale of q, k, v and of gate, up is chosen by the output of the attention and of the MLP.
    Inputs are those of the model as it is quantized so far; there, of the full-precision model. The
    clip's error is over all tokens, not 512. Queries and keys are clipped like the others. And a
    channel counts as no quieter than 10⁻⁴ of the loudest one; there, s as no less than 10⁻⁴.

    Attributes:
        steps: Candidates for α in [0, 1), and steps of the clip in [0, 1].
        clip: Most of the largest weight that may be clipped; 0: none is.
    """

    steps: int = 20
    clip: float = 0.5
    needs: ClassVar[Needs] = Needs.HESSIAN

    def __post_init__(self) -> None:
        """Refuse searches without a candidate."""
        if self.steps < 1 or not 0 <= self.clip < 1:
            raise RecipeError(
                f"quantizer.steps {self.steps} and clip {self.clip}: at least 1, and in [0, 1), "
                "are wanted."
            )

    def input_scale(
        self, weights: list[Tensor], stats: LayerStatistics, bits: int, block_size: int
    ) -> Float[Tensor, " in"]:
        """Return s; α = 0 leaves the channels as they are."""
        mean = stats.magnitude / stats.tokens
        mean = mean.clamp_min((QUIETEST * mean.amax()).clamp_min(1e-10))
        best, least, H = torch.ones_like(mean), torch.inf, stats.hessian
        for step in range(self.steps):
            s = mean.pow(step / self.steps)
            s = s / (s.amax() * s.amin()).sqrt()
            errors = (w - nearest(w * s, bits, block_size) / s for w in weights)
            loss = sum(((e @ H) * e).sum(dtype=torch.float64).item() for e in errors)
            if loss < least:
                best, least = s, loss
        return best

    def quantize(
        self,
        weight: Float[Tensor, "out in"],
        stats: LayerStatistics,
        bits: Int[Tensor, " blocks"],
        block_size: int,
    ) -> UniformWeight:
        """Round each group to its own clipped grid."""
        H = stats.hessian

        def code(block: Tensor, channels: slice, index: int) -> Coded[Group]:
            own = H[channels, channels]
            grid = Grid.least(
                block, int(bits[index]), self._clips(block), lambda e: ((e @ own) * e).sum(dim=1)
            )
            return Coded(grid.group(block), None)

        return UniformWeight.of(sweep(weight, None, block_size, code), block_size)

    def _clips(self, block: Float[Tensor, "out block"]) -> list[Span]:
        """Return the candidates: the whole span, then less and less of it."""
        low, high = reach(block)
        largest = torch.maximum(-low, high)
        shares = [1 - step / self.steps for step in range(max(1, int(self.clip * self.steps)))]
        return [
            (torch.maximum(low, -largest * s), torch.minimum(high, largest * s)) for s in shares
        ]


def nearest(weight: Float[Tensor, "out in"], bits: int, block_size: int) -> Float[Tensor, "out in"]:
    """Round each group from its minimum to its maximum."""
    blocks = [weight[:, channels] for channels in spans(weight.shape[1], block_size)]
    return torch.cat([Grid.fit(block, bits).round(block.T).T for block in blocks], dim=1)
