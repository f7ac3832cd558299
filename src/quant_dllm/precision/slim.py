"""Salience-determined bit allocation: how many blocks trade a bit is searched on the outputs.

    minimise over p   KL( softmax(W x) ‖ softmax(Ŵ_p x) ),   mean over sample tokens

Ŵ_p is W rounded to nearest, the p least salient blocks with one bit less than the budget and the p
most salient ones with one more. Two pointers start at the ends of the ranking and move inwards.

Symbols:
    W  weight, [out, in]    x  input of one token, [in]    p  blocks moved at each end

Reference: Huang et al., "SliM-LLM", arXiv:2405.14917, section 3.2 and algorithm 2.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from quant_dllm.errors import RecipeError
from quant_dllm.precision.uniform import WIDEST, Uniform
from quant_dllm.rounding.grid import Grid
from quant_dllm.statistics.importance import divisor, importance
from quant_dllm.statistics.layer import LayerStatistics, Needs


@dataclass(frozen=True, kw_only=True)
class SalienceDeterminedBitAllocation(Uniform):
    """Rank blocks by their mean salience W²/D²; search how many of them trade a bit.

    D is the diagonal of U, as in the authors' code. What differs from it: p may be 0, as the paper
    says but neither its algorithm nor its code does, and half of the blocks, where the code stops
    before; the divergence is from the full-precision output to the rounded one, as in the paper,
    where the code has it the other way round and clamps the probabilities; it is taken over a
    sample of the tokens, not all; one bit has the levels of `quantizers/slim_llm.py`; and a short
    last block keeps the budget, which is therefore met exactly.
    """

    needs: ClassVar[Needs] = Needs.HESSIAN | Needs.SAMPLES

    def __post_init__(self) -> None:
        """Refuse a budget from which some block would get no bits, or too many."""
        super().__post_init__()
        if not 2 <= self.bits < WIDEST:
            raise RecipeError(
                f"precision.bits is {self.bits}; from 2 to {WIDEST - 1} are wanted, for some "
                "blocks get one less and some one more. Set precision=uniform for others."
            )

    def allocate(
        self, weight: Float[Tensor, "out in"], stats: LayerStatistics
    ) -> Int[Tensor, " blocks"]:
        """Return the bits of each block of input channels; their mean is the budget."""
        assert stats.samples is not None, "the pipeline gathers what `needs` names"
        bits, size = super().allocate(weight, stats), self.block_size
        whole = weight.shape[1] // size
        salience = importance(weight, divisor(stats.factor, "factor")).mean(dim=0)
        score = salience[: whole * size].unflatten(0, (whole, size)).mean(dim=1)
        ranked = score.argsort(stable=True).cpu()
        p = self._search(weight, stats.samples, ranked.tolist())
        bits[ranked[:p]] -= 1
        bits[ranked[whole - p :]] += 1
        return bits

    def _search(
        self, weight: Float[Tensor, "out in"], x: Float[Tensor, "samples in"], ranked: list[int]
    ) -> int:
        """Return the p of least divergence; of equals the smallest."""

        def outputs(block: int, bits: int) -> Float[Tensor, "samples out"]:
            channels = slice(block * self.block_size, (block + 1) * self.block_size)
            return x[:, channels] @ nearest(weight[:, channels], bits).T

        blocks = -(-weight.shape[1] // self.block_size)
        target = F.log_softmax(x @ weight.T, dim=-1)
        now = sum((outputs(b, self.bits) for b in range(blocks)), start=target.new_zeros(()))
        best, least = 0, divergence(target, now)
        for p in range(1, len(ranked) // 2 + 1):
            for block, change in ((ranked[p - 1], -1), (ranked[-p], 1)):
                now = now + outputs(block, self.bits + change) - outputs(block, self.bits)
            if (found := divergence(target, now)) < least:
                best, least = p, found
        return best


def nearest(block: Float[Tensor, "out block"], bits: int) -> Float[Tensor, "out block"]:
    """Round to the nearest level from minimum to maximum; with one bit, to either side's mean."""
    grid = Grid.two_level(block) if bits == 1 else Grid.fit(block, bits)
    return grid.round(block.T).T


def divergence(target: Float[Tensor, "samples out"], output: Float[Tensor, "samples out"]) -> float:
    """Return KL(target ‖ softmax of the output) in nats, the target in logarithms."""
    found = F.log_softmax(output, dim=-1)
    return F.kl_div(found, target, log_target=True, reduction="batchmean").item()
