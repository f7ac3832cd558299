"""The facts that calibration leaves about the inputs of one linear layer."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Flag, auto
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from quant_dllm.statistics.hessian import inverse_factor


class Needs(Flag):
    """What a method reads of the calibration; the pipeline gathers no more than that."""

    NOTHING = 0
    HESSIAN = auto()


@dataclass
class LayerStatistics:
    """Second moments of the inputs that the layers of one stage saw.

    Attributes:
        moment: ``Σ x xᵀ`` over every token, float32: a sum, so that the accounts of two shards add.
        tokens: How many tokens were summed.
        damping: Fraction of the mean diagonal added to the diagonal when H is inverted.
    """

    moment: Float[Tensor, "in in"]
    damping: float = 0.01
    tokens: int = 0

    @classmethod
    def zeros(
        cls, in_features: int, damping: float = 0.01, device: torch.device | str = "cpu"
    ) -> "LayerStatistics":
        """Open an empty account for a layer with ``in_features`` inputs."""
        return cls(torch.zeros(in_features, in_features, device=device), damping)

    @classmethod
    def gather(cls, batches: Iterable[Tensor], damping: float) -> "LayerStatistics":
        """Account for batches [*, in] of inputs, at least one."""
        stats = None
        for x in batches:
            stats = stats or cls.zeros(x.shape[-1], damping, x.device)
            stats.add(x)
        assert stats is not None, "a layer that saw nothing has no statistics"
        return stats

    def add(self, x: Float[Tensor, "*batch in"]) -> None:
        """Add the tokens of one batch, in place."""
        x = x.flatten(0, -2).float()
        self.moment.addmm_(x.T, x)
        self.tokens += len(x)

    @cached_property
    def hessian(self) -> Float[Tensor, "in in"]:
        """Return H: the mean of ``x xᵀ`` over the tokens; the account is closed by asking."""
        return self.moment / max(self.tokens, 1)

    @cached_property
    def factor(self) -> Float[Tensor, "in in"]:
        """Return U, the upper factor of the damped inverse: computed once a stage."""
        return inverse_factor(self.hessian, self.damping)


NO_STATISTICS = LayerStatistics(torch.empty(0, 0))
"""What a method that needs nothing is given."""


def output_error(
    weight: Float[Tensor, "out in"], rounded: Float[Tensor, "out in"], stats: LayerStatistics
) -> float:
    """Return ``‖(W − Ŵ) X‖² / ‖W X‖²``: the share of a layer's output energy that is wrong."""

    def energy(w: Tensor) -> float:
        return ((w @ stats.hessian) * w).sum(dtype=torch.float64).item()

    return energy(weight - rounded) / max(energy(weight), 1e-30)
