"""Refit a rounded matrix of binary planes against the full Hessian: `method.md`, section 4.

    minimise  J = tr((W − Q) H (W − Q)ᵀ),   Q = Σ_k (a_k c_kᵀ) ∘ B_k in each block,

with W the original weight and H damped. Three exact steps are taken in turn: all row scales of a
row at once, all column scales of the matrix at once, and the signs column by column. Each lowers J.

Symbols:
    W  weight, [out, in]      H  damped second moment, [in, in]    R  W − Q
    a  row scales             c  column scales                     B  signs ±1
    p  plane; a block of K channels' planes follow each other      P  planes of the matrix
    V  c_p,j B_p,ij on the channels of plane p, 0 elsewhere: Q_i = Σ_p a_p,i V_p,i
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from quant_dllm.rounding.planes import TINY, ColumnRounding
from quant_dllm.weights.binary import Planes

AT_ONCE = 1024  # rows of the columns' equations that are made at once
PANEL = 4096  # of which one panel has
RIDGE = 1e-6  # of the mean diagonal: keeps the solves positive where two planes nearly coincide


@dataclass
class Matrix:
    """A rounded matrix under repair; its tensors change in place.

    Attributes:
        weight: W.
        hessian: H, damped.
        blocks: Signs (as ±1), row and column scales of each block.
    """

    weight: Float[Tensor, "out in"]
    hessian: Float[Tensor, "in in"]
    blocks: list["Block"]

    @classmethod
    def of(
        cls, weight: Float[Tensor, "out in"], hessian: Float[Tensor, "in in"], planes: list[Planes]
    ) -> "Matrix":
        """Begin with what a sweep has left."""
        blocks, start = [], 0
        for block in planes:
            stop = start + block.signs.shape[-1]
            signs = torch.where(block.signs, 1.0, -1.0)
            blocks.append(Block(slice(start, stop), signs, block.rows, block.columns))
            start = stop
        return cls(weight, hessian, blocks)

    def values(self) -> Float[Tensor, "out in"]:
        """Return Q."""
        return torch.cat([block.values() for block in self.blocks], dim=1)

    def loss(self) -> float:
        """Return J."""
        rest = self.weight - self.values()
        return ((rest @ self.hessian) * rest).sum(dtype=torch.float64).item()

    def planes(self) -> list[Planes]:
        """Return what is stored."""
        return [Planes(block.signs > 0, block.rows, block.columns) for block in self.blocks]


@dataclass
class Block:
    """One block of channels."""

    channels: slice
    signs: Float[Tensor, "order out block"]
    rows: Float[Tensor, "order out"]
    columns: Float[Tensor, "order block"]

    def values(self) -> Float[Tensor, "out block"]:
        """Sum the planes."""
        return torch.einsum("ko,kb,kob->ob", self.rows, self.columns, self.signs)

    def by_row(self) -> Float[Tensor, "out order block"]:
        """Return V on the block's channels."""
        return (self.signs * self.columns[:, None, :]).transpose(0, 1)

    def by_column(self) -> Float[Tensor, "order out block"]:
        """Return what multiplies the column scales: a_k,i B_k,ij."""
        return self.signs * self.rows[:, :, None]


def refit_rows(m: Matrix) -> None:
    """Set all row scales of each row to their joint minimiser."""
    scales, at = solve(*row_equations(m)), 0
    for block in m.blocks:
        order = len(block.rows)
        block.rows = scales[:, at : at + order].T.contiguous()
        at += order


def row_equations(
    m: Matrix,
) -> tuple[Float[Tensor, "out planes planes"], Float[Tensor, "out planes"]]:
    """Return the normal equations of each row's scales: (V H Vᵀ) a = V H Wᵀ.

    They are built block pair by block pair.
    """
    target = m.weight @ m.hessian
    orders = [len(block.rows) for block in m.blocks]
    ends = torch.tensor(orders).cumsum(0).tolist()
    out, total = len(m.weight), sum(orders)
    gram = m.weight.new_zeros(out, total, total)
    right = m.weight.new_zeros(out, total)
    for g, left in enumerate(m.blocks):
        at = slice(ends[g] - orders[g], ends[g])
        V = left.by_row()
        right[:, at] = torch.einsum("okb,ob->ok", V, target[:, left.channels])
        for h in range(g + 1):
            other, to = m.blocks[h], slice(ends[h] - orders[h], ends[h])
            projected = V @ m.hessian[left.channels, other.channels]
            gram[:, at, to] = projected @ other.by_row().transpose(1, 2)
            if h < g:
                gram[:, to, at] = gram[:, at, to].transpose(1, 2)
    return gram, right


def refit_columns(m: Matrix, steps: int = 40) -> None:
    """Move all column scales of the matrix towards their joint minimiser.

    M_(k,j),(k',j') = H_jj' Σ_i s_kij s_k'ij' with s = a B; conjugate gradients from the present
    scales, preconditioned by the diagonal: each step lowers J, and no matrix of K · in rows is
    factored.
    """
    index = [torch.arange(m.weight.shape[1])[b.channels].repeat(len(b.rows)) for b in m.blocks]
    channel = torch.cat(index).to(m.weight.device)
    s = torch.cat([block.by_column().transpose(1, 2).flatten(0, 1) for block in m.blocks])
    target = (m.weight @ m.hessian).T
    parts = zip(s.split(AT_ONCE), channel.split(AT_ONCE), strict=True)
    right = torch.cat([(rows * target[some]).sum(1) for rows, some in parts])
    del target
    gram = Symmetric.of(s, m.hessian, channel)
    del s
    start = torch.cat([block.columns.flatten() for block in m.blocks])
    scales = _conjugate_gradients(gram, right, start, steps)
    at = 0
    for block in m.blocks:
        count = block.columns.numel()
        block.columns = scales[at : at + count].view_as(block.columns)
        at += count


@dataclass
class Symmetric:
    """The lower half of a matrix [n, n], which takes 2.4 GB as a whole at 12288 inputs.

    Attributes:
        panels: Of rows, up to the column of the last of them.
    """

    panels: list[Tensor]

    @classmethod
    def of(
        cls,
        s: Float[Tensor, "n out"],
        hessian: Float[Tensor, "in in"],
        channel: Int[Tensor, " n"],
    ) -> "Symmetric":
        """Make M of s, H, and the channel of each row of s."""
        panels = []
        for rows in torch.arange(len(s)).split(PANEL):
            first, end = int(rows[0]), int(rows[-1]) + 1
            panels.append(s[first:end] @ s[:end].T)
            parts = zip(panels[-1].split(AT_ONCE), channel[first:end].split(AT_ONCE), strict=True)
            for part, some in parts:
                part.mul_(hessian[some][:, channel[:end]])
        return cls(panels)

    def __matmul__(self, x: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Multiply a vector."""
        found = torch.zeros_like(x)
        for panel in self.panels:
            end = panel.shape[1]
            first = end - len(panel)
            found[first:end] += panel @ x[:end]
            found[:first] += panel[:, :first].T @ x[first:end]
        return found

    def diagonal(self) -> Float[Tensor, " n"]:
        """Return the diagonal."""
        return torch.cat([panel[:, -len(panel) :].diagonal() for panel in self.panels])


def choose_signs(m: Matrix) -> None:
    """Give each column in turn the signs nearest to where the other columns want it.

    The target of column j is W_j + (R H_j − R_j H_jj)/H_jj = Q_j + (R H)_j / H_jj. R H is made anew
    at each block. Within one, targets are first made as if the columns before were zero, and each
    column, once rounded, moves those behind it.
    """
    rest = m.weight - m.values()
    for block in m.blocks:
        here = block.channels
        own = m.hessian[here, here]
        d = own.diagonal()[:, None]
        before = (own / d).tril_(-1)  # H_jj' / H_jj of the columns j' before j
        values = block.values().T  # a row a column, as all that follows
        wanted = (rest @ m.hessian[:, here]).T.div(d).add_(values).addmm_(before, values)
        rounding, found = ColumnRounding(block.rows, block.columns), []
        for j, moves in enumerate(before.T.contiguous()):
            found.append(rounding(j, wanted[j]))
            wanted[j + 1 :].addr_(moves[j + 1 :], found[j], alpha=-1)
        block.signs = rounding.signs()
        rest[:, here] = m.weight[:, here] - torch.stack(found, dim=1)


def refine(m: Matrix, rounds: int, sign_passes: int = 2, tolerance: float = 2e-3) -> list[float]:
    """Take the three steps in turn; stop when a round lowers J by less than ``tolerance`` of it.

    Returns:
        J before the first round, after each, and with the scales rounded to float16.
    """
    losses = [m.loss()]
    for _ in range(rounds):
        refit_rows(m)
        refit_columns(m)
        for _ in range(sign_passes):
            choose_signs(m)
        losses.append(m.loss())
        if losses[-2] - losses[-1] < tolerance * losses[-2]:
            break
    settle(m)
    losses.append(m.loss())
    return losses


def settle(m: Matrix) -> None:
    """Round the scales to what float16 stores; the rows' make up for the rounding of the columns'.

    a·s and c/s make the same plane; s sets the mean of |c| to one, where float16 is fine.
    """
    for block in m.blocks:
        size = block.columns.abs().mean(dim=1, keepdim=True).clamp_min(TINY)
        block.columns = (block.columns / size).half().float()
    refit_rows(m)
    for block in m.blocks:
        block.rows = block.rows.half().float()


def solve(gram: Float[Tensor, "rows n n"], right: Float[Tensor, "rows n"]) -> Tensor:
    """Solve a positive definite system a row; the ridge stays on the diagonal of ``gram``."""
    mean = gram.diagonal(dim1=1, dim2=2).mean(1)
    gram.diagonal(dim1=1, dim2=2).add_(RIDGE * mean.clamp_min(1e-30)[:, None])
    factor, failed = torch.linalg.cholesky_ex(gram)
    if failed.any():
        return torch.linalg.lstsq(gram.double(), right.double()[..., None]).solution[..., 0].float()
    return torch.cholesky_solve(right[..., None], factor)[..., 0]


def _conjugate_gradients(
    gram: Symmetric, right: Float[Tensor, " n"], x: Float[Tensor, " n"], steps: int
) -> Float[Tensor, " n"]:
    """Minimise ½ xᵀ M x − xᵀ r from ``x``."""
    inverse = 1.0 / gram.diagonal().clamp_min(1e-30)
    rest = right - gram @ x
    z = inverse * rest
    direction, fit = z.clone(), rest @ z
    floor = 1e-12 * (right @ (inverse * right))
    for _ in range(steps):
        if fit <= floor:
            break
        image = gram @ direction
        step = fit / (direction @ image)
        x = x + step * direction
        rest = rest - step * image
        z = inverse * rest
        fit, before = rest @ z, fit
        direction = z + (fit / before) * direction
    return x
