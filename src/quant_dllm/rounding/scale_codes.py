"""Round the scales of a matrix to codes, so that each makes up for the errors of those before it.

    minimise  tr((W − Q) H (W − Q)ᵀ)  over the codes of a and c, the signs being fixed

The column scales are rounded first, and the row scales refitted to what that leaves. Then the row
scales of each row are rounded one after the other, the rest moved to where they do best (GPTQ's
step, with a row's scales in the place of its weights and their normal equations in that of H).

Symbols:
    W  weight    H  damped second moment    Q  Σ_k (a_k c_kᵀ) ∘ B_k in each block
    a  row scales    c  column scales       U  upper factor: (V H Vᵀ)⁻¹ = Uᵀ U, see `second_order`
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from quant_dllm.rounding.planes import TINY
from quant_dllm.rounding.second_order import Matrix, row_equations, solve
from quant_dllm.weights.binary import Planes
from quant_dllm.weights.compact import CompactWeight, Grid, positive

AT_ONCE = 1 << 26  # numbers of the factors that are made at once


def code_scales(m: Matrix, bits: int, block_size: int) -> CompactWeight:
    """Choose codes for all scales; the scales of ``m`` become what the codes stand for.

    Args:
        m: A matrix whose signs are settled.
        bits: Of a code.
        block_size: Input channels of a block.
    """
    columns = _code_columns(m, bits)
    gram, right = row_equations(m)
    scales = solve(gram, right)
    _turn_positive(m, gram, scales)
    grids = [Grid.fit(plane, bits) for plane in scales.T]
    size = max(1, AT_ONCE // gram.shape[1] ** 2)
    parts = zip(gram.split(size), scales.split(size), strict=True)
    codes = torch.cat([_feed_on(some, a, grids) for some, a in parts])
    at = iter(range(len(grids)))
    for block in m.blocks:
        mine = [next(at) for _ in block.rows]
        block.rows = torch.stack([grids[p].values(codes[:, p]) for p in mine])
    return CompactWeight.coded(m.planes(), block_size, (list(codes.T), grids), columns)


def _code_columns(m: Matrix, bits: int) -> tuple[list[Tensor], list[Grid]]:
    """Round the column scales; their mean is one, where float16 is fine."""
    codes, grids = [], []
    for block in m.blocks:
        size = block.columns.abs().mean(dim=1, keepdim=True).clamp_min(TINY)
        turned = positive(Planes(block.signs > 0, block.rows, block.columns / size))
        block.signs = torch.where(turned.signs, 1.0, -1.0)
        for k, plane in enumerate(turned.columns):
            grids.append(Grid.fit(plane, bits))
            codes.append(grids[-1].codes(plane))
            block.columns[k] = grids[-1].values(codes[-1])
    return codes, grids


def _turn_positive(
    m: Matrix, gram: Float[Tensor, "out planes planes"], scales: Float[Tensor, "out planes"]
) -> None:
    """Move the signs of row scales into the planes, and into the equations."""
    turn = torch.where(scales < 0, -1.0, 1.0)
    scales.mul_(turn)
    gram.mul_(turn[:, :, None]).mul_(turn[:, None, :])
    at = 0
    for block in m.blocks:
        order = len(block.rows)
        block.signs.mul_(turn.T[at : at + order, :, None])
        at += order


def _feed_on(
    gram: Float[Tensor, "rows planes planes"], scales: Float[Tensor, "rows planes"], grids: list
) -> Int[Tensor, "rows planes"]:
    """Round a row's scales in turn; each error moves the scales that are still free."""
    free, codes = scales.clone(), torch.empty_like(scales, dtype=torch.int32)
    alone = torch.eye(len(grids), device=gram.device)  # where planes coincide: nothing is fed on
    factor, failed = torch.linalg.cholesky_ex(gram)
    factor = torch.where(failed.bool()[:, None, None], alone, factor)
    factor, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(factor), upper=True)
    U = torch.where(failed.bool()[:, None, None], alone, factor)
    for p, grid in enumerate(grids):
        codes[:, p] = grid.codes(free[:, p])
        error = (free[:, p] - grid.values(codes[:, p])) / U[:, p, p]
        free[:, p:] -= error[:, None] * U[:, p, p:]
    return codes
