"""Many processes under ``torchrun``, or one: then every function here does nothing."""

import torch
import torch.distributed as dist
from torch import Tensor


def rank() -> int:
    """Return this process's number."""
    return dist.get_rank() if _many() else 0


def world() -> int:
    """Count the processes."""
    return dist.get_world_size() if _many() else 1


def mean_over_ranks(tensors: list[Tensor]) -> None:
    """Replace tensors by their mean over all processes, in one exchange."""
    if not _many():
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    flat /= world()
    at = 0
    for tensor in tensors:
        tensor.copy_(flat[at : at + tensor.numel()].view_as(tensor))
        at += tensor.numel()


def _many() -> bool:
    return dist.is_available() and dist.is_initialized()
