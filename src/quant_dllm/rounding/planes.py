"""Fit a sum of scaled binary planes to one block of weights.

    minimise  Σ_ij ω_ij (W_ij − Σ_k a_ki c_kj B_kij)²,   B = ±1

by steps each of which is the exact minimiser of its own variable (`method.md`, section 3).

Symbols:
    W  block, [out, block]         ω  weight of each squared error, [out, block]
    a  row scales, [order, out]    c  column scales, [order, block]    B  signs ±1
    R  what the other planes leave of W
"""

from dataclasses import dataclass
from itertools import combinations

import torch
from jaxtyping import Float
from torch import Tensor

from quant_dllm.rounding.sweep import spans
from quant_dllm.weights.binary import Planes

TINY = 1e-20  # keeps a dead row or column from dividing by zero; far below any real sum
AT_ONCE = 512  # rows whose signs are chosen at once


@dataclass
class Fit:
    """A fit under way; the tensors change in place.

    Attributes:
        signs: B, as ±1.
    """

    rows: Float[Tensor, "order out"]
    columns: Float[Tensor, "order block"]
    signs: Float[Tensor, "order out block"]

    def values(self) -> Float[Tensor, "out block"]:
        """Sum the planes."""
        return torch.einsum("ko,kb,kob->ob", self.rows, self.columns, self.signs)

    def rescale(self, k: int, terms: "Terms") -> None:
        """Set a_k, then c_k, to their minimisers, the other planes being what they are."""
        a, c, others = self.rows, self.columns, [x for x in range(len(self.signs)) if x != k]
        wanted = terms.weight[k] @ c[k]
        for x in others:
            wanted -= a[x] * (terms.planes[k, x] @ (c[x] * c[k]))
        a[k] = wanted / terms.over_columns(c[k]).clamp_min(TINY)
        wanted = a[k] @ terms.weight[k]
        for x in others:
            wanted -= c[x] * ((a[x] * a[k]) @ terms.planes[k, x])
        c[k] = wanted / terms.over_rows(a[k]).clamp_min(TINY)

    def resign(self, w: Float[Tensor, "out block"]) -> None:
        """Choose all signs anew, some rows at once: what is at work then stays in a cache."""
        for some in spans(len(w), AT_ONCE):
            scales = self.rows[:, some, None] * self.columns[:, None, :]
            self.signs[:, some] = nearest_signs(w[some], scales)

    def halve(self) -> "Fit":
        """Round the scales to what float16 stores.

        a·s and c/s make the same plane; s sets the mean of |c| to one, where float16 is fine.
        """
        mean = self.columns.abs().mean(dim=1, keepdim=True).clamp_min(TINY)
        self.rows, self.columns = (self.rows * mean).half().float(), self.columns / mean
        self.columns = self.columns.half().float()
        return self

    def freeze(self) -> Planes:
        """Return what is stored."""
        return Planes(self.signs > 0, self.rows, self.columns)


class Terms:
    """What the closed forms of the scales read while signs stay: they are sums over it.

    Args:
        w: W.
        omega: ω, or ``None`` where it is 1.
        signs: B, as ±1.

    Attributes:
        weight: ω W B_k, plane after plane.
        planes: ω B_k B_x, for every two planes.
    """

    def __init__(
        self, w: Float[Tensor, "out block"], omega: Tensor | None, signs: Float[Tensor, "..."]
    ):
        self.omega = omega
        weighed = w if omega is None else w * omega
        self.weight = [weighed * sign for sign in signs]
        self.planes: dict[tuple[int, int], Tensor] = {}
        for k, x in combinations(range(len(signs)), 2):
            both = signs[k] * signs[x]
            self.planes[k, x] = self.planes[x, k] = both if omega is None else both.mul_(omega)

    def over_columns(self, c: Float[Tensor, " block"]) -> Float[Tensor, "..."]:
        """Sum ω c² over the columns."""
        return c.square().sum() if self.omega is None else self.omega @ c.square()

    def over_rows(self, a: Float[Tensor, " out"]) -> Float[Tensor, "..."]:
        """Sum ω a² over the rows."""
        return a.square().sum() if self.omega is None else a.square() @ self.omega


def nearest_signs(
    w: Float[Tensor, "..."], scales: Float[Tensor, "order ..."]
) -> Float[Tensor, "order ..."]:
    """Choose signs so that Σ_k ±scales_k is nearest to w, element by element; ω cancels."""
    one = w.new_ones(())
    if len(scales) > 2:  # the last plane either way, and the others to what that leaves
        tries = []
        for last in (one, -one):
            others = nearest_signs(w - last * scales[-1], scales[:-1])
            tries.append(torch.cat((others, last.expand_as(others[:1]))))
        errors = [(w - (signs * scales).sum(dim=0)).abs_() for signs in tries]
        return torch.where(errors[0] <= errors[1], *tries)
    signs = one.copysign(w * scales)
    if len(scales) == 2:  # the larger term takes the sign of w, the other that of what is left
        sizes = scales.abs()
        left = one.copysign(w.abs().sub_(torch.maximum(sizes[0], sizes[1])))
        first = one.copysign(sizes[0] - sizes[1])
        signs[0] *= torch.maximum(first, left)
        signs[1] *= torch.maximum(-first, left)
    return signs


class ColumnRounding:
    """Rounds a block column by column, the scales being fixed; it takes columns in any order.

    With one or two planes a column is two or four elementwise steps, and the signs are read off in
    the end: the larger term takes the sign of what is wanted, the other that of what is left.

    Args:
        rows, columns: Scales of the block, a and c.
    """

    def __init__(self, rows: Float[Tensor, "order out"], columns: Float[Tensor, "order block"]):
        self.scales = columns[:, :, None] * rows[:, None, :]  # [order, block, out]
        size = self.scales.abs().sort(dim=0, descending=True)
        self.sizes, self.ranks = size.values, size.indices
        self.terms = torch.empty_like(self.scales)

    def __call__(self, j: int, wanted: Float[Tensor, " out"]) -> Float[Tensor, " out"]:
        """Return what of column j is nearest to ``wanted``."""
        if len(self.scales) > 2:
            signs = nearest_signs(wanted, self.scales[:, j])
            self.terms[:, j] = signs
            return (signs * self.scales[:, j]).sum(0)
        first = torch.copysign(self.sizes[0, j], wanted, out=self.terms[0, j])
        if len(self.scales) == 1:
            return first
        return first + torch.copysign(self.sizes[1, j], wanted - first, out=self.terms[1, j])

    def signs(self) -> Float[Tensor, "order out block"]:
        """Return the signs of all columns, once each was rounded."""
        if len(self.scales) > 2:
            return self.terms.transpose(1, 2)
        terms = torch.empty_like(self.terms).scatter_(0, self.ranks, self.terms)
        return torch.where(terms.signbit() == self.scales.signbit(), 1.0, -1.0).transpose(1, 2)


def start(w: Float[Tensor, "out block"], order: int) -> Fit:
    """Take plane after plane from the means of what is left."""
    rest, rows, columns, signs = w.clone(), [], [], []
    for _ in range(order):
        size = rest.abs()
        rows.append(a := size.mean(dim=1))
        columns.append(c := (size / a.clamp_min(TINY)[:, None]).mean(dim=0))
        signs.append(b := rest.new_ones(()).copysign(rest))
        rest -= torch.outer(a, c) * b
    return Fit(torch.stack(rows), torch.stack(columns), torch.stack(signs))


def loss(w: Tensor, fit: Fit, weight: Tensor | None) -> float:
    """Return the weighted squared error."""
    square = (w - fit.values()).square_()
    return (square if weight is None else square * weight).sum().item()


def fit_joint(
    w: Float[Tensor, "out block"], weight: Tensor | None, order: int, rounds: int, tolerance: float
) -> Fit:
    """Start from means, and refit all planes together."""
    return refine(start(w, order), w, weight, rounds, tolerance)


def refine(
    fit: Fit, w: Float[Tensor, "out block"], weight: Tensor | None, rounds: int, tolerance: float
) -> Fit:
    """Refit the scales of each plane against the others, then all signs at once, and again."""
    before = torch.inf
    for _ in range(rounds):
        terms = Terms(w, weight, fit.signs)
        for k in range(len(fit.signs)):
            fit.rescale(k, terms)
        fit.resign(w)
        if tolerance > 0:
            now = loss(w, fit, weight)
            if before - now <= tolerance * now:
                break
            before = now
    return fit


def fit_greedy(
    w: Float[Tensor, "out block"], weight: Tensor | None, order: int, rounds: int, tolerance: float
) -> Fit:
    """Fit the first plane alone, then the second to what it leaves, and so on (the paper)."""
    rest, planes = w.clone(), []
    for _ in range(order):
        plane = fit_joint(rest, weight, 1, rounds, tolerance)
        rest -= plane.values()
        planes.append(plane)
    return Fit(
        torch.cat([p.rows for p in planes]),
        torch.cat([p.columns for p in planes]),
        torch.cat([p.signs for p in planes]),
    )
