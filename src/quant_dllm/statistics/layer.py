"""The facts that calibration leaves about the inputs of one linear layer."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from enum import Flag, auto
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from quant_dllm.statistics.hessian import inverse_factor

KEPT_SAMPLES = 2048  # tokens whose inputs are kept for methods that ask for them


class Needs(Flag):
    """What a method reads of the calibration; the pipeline gathers no more than that.

    HESSIAN: second moments. DRIFT: how far the inputs are from those of the full-precision model,
    at the cost of running that one beside. SAMPLES: some of the inputs themselves.
    """

    NOTHING = 0
    HESSIAN = auto()
    DRIFT = auto()
    SAMPLES = auto()


@dataclass(frozen=True)
class LayerStatistics:
    """Facts about the inputs x that the layers of one stage saw, gathered once a stage.

    Attributes:
        moment: ``Σ x xᵀ`` over every token, float32: a sum, so that the accounts of two shards add.
        magnitude: ``Σ |x|`` over every token.
        tokens: How many tokens were summed.
        damping: Fraction of the mean diagonal added to the diagonal when H is inverted.
        drift: ``Σ (x̃ − x) xᵀ``, x̃ the input in the full-precision model; only if asked for.
        samples: Inputs of some tokens, evenly spaced over all; only if asked for.
        chosen: Tokens that chose this expert, where they were so few that all tokens were taken
            instead; else ``None``.
    """

    moment: Float[Tensor, "in in"]
    magnitude: Float[Tensor, " in"]
    tokens: int
    damping: float = 0.01
    drift: Float[Tensor, "in in"] | None = None
    samples: Float[Tensor, "samples in"] | None = None
    chosen: int | None = None

    @classmethod
    def gather(
        cls,
        batches: Iterable[Tensor],
        damping: float = 0.01,
        needs: Needs = Needs.HESSIAN,
        full: Iterable[Tensor] = (),
    ) -> "LayerStatistics":
        """Account for batches [*, in] of inputs, at least one.

        Args:
            batches: Inputs.
            damping: See the attribute.
            needs: What to gather beside moments.
            full: The inputs of the same tokens in the full-precision model, where drift is asked.
        """
        account, twins = Account(), iter(full)
        for x in batches:
            account.add(x, next(twins) if Needs.DRIFT in needs else None, Needs.SAMPLES in needs)
        account.thin(1)
        assert account.tokens, "a layer that saw nothing has no statistics"
        return account.close(damping)

    @property
    def hessian(self) -> Float[Tensor, "in in"]:
        """Return H: the mean of ``x xᵀ`` over the tokens, not damped.

        It is made anew each time: beside the moment it would take half a gigabyte all along where
        a layer has 12288 inputs.
        """
        return self.moment / max(self.tokens, 1)

    @cached_property
    def factor(self) -> Float[Tensor, "in in"]:
        """Return U, the upper factor of the damped inverse: computed once a stage."""
        return inverse_factor(self.hessian, self.damping)

    def forget_factor(self) -> None:
        """Give the factor's memory back; it is computed anew when it is asked for again."""
        self.__dict__.pop("factor", None)

    def scaled(self, s: Float[Tensor, " in"]) -> "LayerStatistics":
        """Return the statistics of inputs whose channels were multiplied by ``s``."""
        both = s[:, None] * s
        return replace(
            self,
            moment=self.moment * both,
            magnitude=self.magnitude * s,
            drift=None if self.drift is None else self.drift * both,
            samples=None if self.samples is None else self.samples * s,
        )


NO_STATISTICS = LayerStatistics(torch.empty(0, 0), torch.empty(0), 0)
"""What a method that needs nothing is given."""


@dataclass
class Account:
    """Sums under way, over the inputs that one group of layers has seen so far.

    Attributes:
        sums: By name: ``moment``, ``magnitude``, ``drift`` where it is asked for.
        kept: Inputs that are kept, where samples are asked for.
        tokens: How many tokens were summed.
    """

    sums: dict[str, Tensor] = field(default_factory=dict)
    kept: list[Tensor] = field(default_factory=list)
    tokens: int = 0

    def add(self, x: Tensor, full: Tensor | None, keep: bool) -> None:
        """Add the tokens of one batch."""
        if keep:
            self.kept.append(x.flatten(0, -2))
        exact = x.is_cuda and x.dtype != torch.float32
        x = x.flatten(0, -2).float()
        with tensor_cores() if exact else nullcontext():
            self.add_product("moment", x, x)
            if full is not None:
                self.add_product("drift", full.flatten(0, -2).float() - x, x)
        self._sum("magnitude", x.abs().sum(0))
        self.tokens += len(x)

    def add_product(self, name: str, a: Tensor, b: Tensor) -> None:
        """Add ``Σ a bᵀ`` without a second matrix beside the sum."""
        if name in self.sums:
            self.sums[name].addmm_(a.T, b)
        else:
            self.sums[name] = a.T @ b

    def thin(self, shards: int) -> None:
        """Keep some of the samples, evenly spaced: this account's share of `KEPT_SAMPLES`."""
        if self.kept:
            stride = max(1, self.tokens * shards // KEPT_SAMPLES)
            self.kept = [torch.cat(self.kept)[::stride].float()]

    def merge(self, later: "Account") -> "Account":
        """Take in the account of the tokens that follow."""
        for name, term in later.sums.items():
            self._sum(name, term)
        self.kept += later.kept
        self.tokens += later.tokens
        return self

    def close(self, damping: float) -> LayerStatistics:
        """Return the account."""
        return LayerStatistics(
            self.sums["moment"], self.sums["magnitude"], self.tokens, damping,
            self.sums.get("drift"), torch.cat(self.kept) if self.kept else None,
        )  # fmt: skip

    def _sum(self, name: str, term: Tensor) -> None:
        self.sums[name] = self.sums[name].add_(term) if name in self.sums else term


@contextmanager
def tensor_cores() -> Iterator[None]:
    """Let products of float32 run on a GPU's tensor cores, whose inputs have 11 bits (TF32).

    Numbers that were 16-bit floats lose nothing by it, and the sums are float32 all the same. Of a
    difference of two, as the drift is made of, 2^-11 of each is lost.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def output_error(
    weight: Float[Tensor, "out in"], rounded: Float[Tensor, "out in"], stats: LayerStatistics
) -> float:
    """Return ``‖(W − Ŵ) X‖² / ‖W X‖²``: the share of a layer's output energy that is wrong."""
    hessian = stats.hessian

    def energy(w: Tensor) -> float:
        return ((w @ hessian) * w).sum(dtype=torch.float64).item()

    return energy(weight - rounded) / max(energy(weight), 1e-30)
