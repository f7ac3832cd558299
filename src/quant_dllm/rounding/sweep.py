"""Left-to-right rounding with error feedback: the loop inside GPTQ and all its children.

A matrix is rounded block after block. What a block's rounding got wrong is pushed onto the columns
to its right, where it costs least: W −= E U. The methods differ in how a block is coded and in
how far E is right, and in nothing else.

Symbols (those of the papers):
    W  weight, [out, in]     U  upper factor of the inverse Hessian, H⁻¹ = Uᵀ U
    Q  rounded weight        E  rounding error in the columns' own units, (W − Q) U⁻¹
    P  what a column, before it is rounded, adds to the columns on its right (GPTAQ), strictly upper
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

C = TypeVar("C")


@dataclass(frozen=True)
class Coded(Generic[C]):
    """One rounded block.

    Attributes:
        code: What the method stores of it.
        error: E, to be fed on, if anything is.
        reached: Each column as it was when the sweep reached it, where P is to add it on.
    """

    code: C
    error: Float[Tensor, "out block"] | None
    reached: Float[Tensor, "out block"] | None = None


def spans(in_features: int, block_size: int) -> Iterator[slice]:
    """Yield the channels of each block; the last one may be short."""
    for start in range(0, in_features, block_size):
        yield slice(start, min(start + block_size, in_features))


def sweep(
    weight: Float[Tensor, "out in"],
    factor: Float[Tensor, "in in"] | None,
    block_size: int,
    code: Callable[[Float[Tensor, "out block"], slice, int], Coded[C]],
    correction: Float[Tensor, "in in"] | None = None,
) -> list[C]:
    """Code the blocks of ``weight`` from left to right and feed each one's error on.

    Args:
        weight: W; it is not modified.
        factor: U, or ``None`` where no error is fed on.
        block_size: Input channels of a block.
        code: ``code(block, channels, index)`` rounds the current values of one block.
        correction: P; then ``code`` must tell what it reached.

    Reference: Frantar et al., "GPTQ", arXiv:2210.17323, algorithm 1.
    """
    rest, codes = weight.clone(), []
    for index, channels in enumerate(spans(weight.shape[1], block_size)):
        coded = code(rest[:, channels], channels, index)
        codes.append(coded.code)
        right = slice(channels.stop, None)
        if coded.error is not None and factor is not None:
            rest[:, right].addmm_(coded.error, factor[channels, right], alpha=-1)
        if correction is not None:
            assert coded.reached is not None, "a coder that is corrected tells what it reached"
            rest[:, right].addmm_(coded.reached, correction[channels, right])
    return codes


def column_by_column(
    block: Float[Tensor, "out block"],
    factor: Float[Tensor, "block block"],
    round_column: Callable[[int, Float[Tensor, " out"]], Float[Tensor, " out"]],
    correction: Float[Tensor, "block block"] | None = None,
) -> tuple[Float[Tensor, "out block"], Float[Tensor, "out block"]]:
    """Round the columns of a block in turn; each one's error moves the block's later columns.

    Args:
        block: Current values; not modified.
        factor: The block's own square of U.
        round_column: ``round_column(j, w)`` rounds column ``j``, whose current value is ``w``.
        correction: The block's own square of P.

    Returns:
        Q and E. What the sweep reached is Q + E diag(U).
    """
    rest = block.T.contiguous()  # a column is then one run of memory
    error, values, diagonal = torch.empty_like(rest), [], factor.diagonal()
    for j, moves in enumerate(factor / diagonal[:, None]):
        values.append(round_column(j, rest[j]))
        torch.sub(rest[j], values[j], out=error[j])
        rest[j + 1 :].addr_(moves[j + 1 :], error[j], alpha=-1)
        if correction is not None:
            rest[j + 1 :].addr_(correction[j, j + 1 :], rest[j])
    return torch.stack(values, dim=1), error.T / diagonal


def block_error(
    block: Float[Tensor, "out block"],
    values: Float[Tensor, "out block"],
    factor: Float[Tensor, "block block"],
) -> Float[Tensor, "out block"]:
    """Solve E U_bb = W_b − Q_b for a block that was rounded as a whole: the exact feedback.

    It is what `column_by_column` gives for a rounding that ignores the moved values.
    """
    return torch.linalg.solve_triangular(factor, block - values, upper=True, left=False)


def diagonal_error(
    block: Float[Tensor, "out block"],
    values: Float[Tensor, "out block"],
    factor: Float[Tensor, "block block"],
) -> Float[Tensor, "out block"]:
    """Divide each column by U_jj alone: the shortcut of the release, which drops U_bb's rest."""
    return (block - values) / factor.diagonal()
