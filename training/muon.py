"""Muon: momentum whose singular values are all set to about one, for the matrices of a network.

Every worker of a data-parallel run orthogonalises its share of the matrices; the shares are added.
The step has the root mean square that AdamW's has, so both take the same learning rate. Unlike
`torch.optim.Muon`, which iterates in bfloat16, it iterates in the parameters' precision: processors
without bfloat16 arithmetic are ten times faster in float32.

Reference: Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024;
Liu et al., "Muon is Scalable for LLM Training", arXiv:2502.16982, section 2.2 (root mean square).
"""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor

QUINTIC = (3.4445, -4.7750, 2.0315)
"""Coefficients of the iteration x ← a·x + b·x³ + c·x⁵ on the singular values."""


def orthogonal(matrix: Tensor, iterations: int = 5) -> Tensor:
    """Bring the singular values of a matrix [rows, columns] near one, keeping its vectors."""
    a, b, c = QUINTIC
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = wide / wide.norm().clamp(min=1e-7)
    for _ in range(iterations):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if matrix.shape[0] <= matrix.shape[1] else x.T


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised; decoupled weight decay."""

    def __init__(self, matrices: Iterable[Tensor], lr: float, momentum: float, weight_decay: float):
        super().__init__(matrices, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take one step; every worker calls it with the same gradients."""
        workers = dist.get_world_size() if dist.is_initialized() else 1
        worker = dist.get_rank() if workers > 1 else 0
        for group in self.param_groups:
            for index, matrix in enumerate(group["params"]):
                state = self.state[matrix]
                if not state:
                    state["memory"] = torch.zeros_like(matrix)
                memory = state["memory"].lerp_(matrix.grad, 1 - group["momentum"])
                if index % workers == worker:
                    matrix.grad.copy_(orthogonal(matrix.grad.lerp(memory, group["momentum"])))
                else:
                    matrix.grad.zero_()
            flat = torch.cat([matrix.grad.flatten() for matrix in group["params"]])
            if workers > 1:
                dist.all_reduce(flat)
            steps = flat.split([matrix.numel() for matrix in group["params"]])
            for matrix, step in zip(group["params"], steps, strict=True):
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                size = 0.2 * max(matrix.shape) ** 0.5
                matrix.sub_(step.view_as(matrix), alpha=group["lr"] * size)
