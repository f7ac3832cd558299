"""Spend one budget of bits over the layers of the whole model, before any is rounded."""

import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from quant_dllm.distributed import any_rank, from_first, rank
from quant_dllm.errors import Interrupted, RecipeError
from quant_dllm.pipeline.job import Job
from quant_dllm.pipeline.journal import Journal
from quant_dllm.pipeline.sensitivity import Increases, SensitivityPass
from quant_dllm.pipeline.signals import Stop
from quant_dllm.precision.sensitivity import SensitivityBasedBitAllocation, spend
from quant_dllm.quantizers.base import StoresPlanes
from quant_dllm.rounding.sweep import spans

FOLDER = "sensitivity"  # in that of the journal


@dataclass(frozen=True)
class Budget:
    """What there is to spend, and on what.

    Attributes:
        costs: By slot of a layer, what one plane of each of its blocks takes, bits.
        bits: What all planes may take.
        weights: Weights of the layers.
        blocks: Blocks of channels of all layers.
    """

    costs: dict[str, Int[Tensor, " blocks"]]
    bits: int
    weights: int
    blocks: int

    @classmethod
    def of(cls, job: Job) -> "Budget":
        """Read it off the shapes.

        Raises:
            RecipeError: One plane a block is more than there is.
        """
        policy = job.precision
        assert isinstance(policy, SensitivityBasedBitAllocation), "another has no such budget"
        shapes = job.source.empty().state_dict()
        sizes = {slot: tuple(shapes[f"{slot}.weight"].shape) for slot in job.source.layers}
        costs = {slot: torch.tensor(list(_costs(job, *size))) for slot, size in sizes.items()}
        weights, blocks = sum(map(math.prod, sizes.values())), sum(map(len, costs.values()))
        stored = policy.counts == "stored"  # then a byte a block says its order
        found = cls(costs, policy.budget(weights) - 8 * blocks * stored, weights, blocks)
        if found.order < 1:
            least = (found.plane_bits + 8 * blocks * stored) / weights
            raise RecipeError(
                f"precision.bits is {policy.bits:g}, {policy.counts} counted; one plane a block "
                f"takes {least:.3f} of these shapes. Raise it."
            )
        return found

    @property
    def plane_bits(self) -> int:
        """Add up one plane of every block."""
        return sum(int(some.sum()) for some in self.costs.values())

    @property
    def order(self) -> float:
        """Say what order all blocks could have if they had the same."""
        return self.bits / self.plane_bits


def _costs(job: Job, out: int, inputs: int) -> Iterator[int]:
    """Yield what one plane of each block of a matrix [out, in] takes of the budget, bits."""
    assert isinstance(job.precision, SensitivityBasedBitAllocation)
    assert isinstance(job.quantizer, StoresPlanes), "the job was checked"
    for channels in spans(inputs, job.precision.block_size):
        width = channels.stop - channels.start
        codes = job.precision.counts == "codes"
        yield out * width if codes else job.quantizer.plane_bits(out, width)


Allocation = dict[str, tuple[list[int], float]]
"""By slot of a layer: bits of its blocks, and the expected increase of the loss, nats."""


def allocate(job: Job, journal: Journal, stop: Stop, memory: int) -> Allocation:
    """Return what each layer gets, as it was saved or newly measured; nothing where no policy asks.

    Args:
        job: What is quantized.
        journal: Where it is saved.
        stop: Tells when to stop.
        memory: Bytes of hidden states that may be in memory.

    Raises:
        Interrupted: It was asked to, before there was an allocation.
        RecipeError: The budget is too small for the shapes.
    """
    policy = job.precision
    if not isinstance(policy, SensitivityBasedBitAllocation):
        return {}
    found = journal.allocation()
    if found is None:
        budget = Budget.of(job)
        found = _spend(budget, _measure(job, policy.tokens, journal, stop, memory))
        journal.save_allocation(found)
    return {slot: (layer["orders"], layer["increase"]) for slot, layer in found.items()}


def _measure(job: Job, tokens: int, journal: Journal, stop: Stop, memory: int) -> Increases:
    folder = journal.folder / FOLDER

    def pause() -> None:
        if any_rank(stop.wanted):
            raise Interrupted(
                "stopped while sensitivities were measured; no layer is rounded yet. "
                "Begin again with the same command."
            )

    def make() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()

    with journal.explained():
        from_first(make)
        found = SensitivityPass(job, tokens, folder, memory).run(pause)
    if rank() == 0:
        shutil.rmtree(folder, ignore_errors=True)
    return found


def _spend(budget: Budget, increases: Increases) -> dict[str, dict[str, Any]]:
    """Allocate; the same on all processes, for all know all increases."""
    tables = [torch.tensor(increases[slot], dtype=torch.float64) for slot in budget.costs]
    costs = torch.cat(list(budget.costs.values()))
    orders = spend(torch.cat(tables), costs, budget.bits).split([len(t) for t in tables])
    return {
        slot: {"orders": some.tolist(), "increase": _at(table, some)}
        for slot, table, some in zip(budget.costs, tables, orders, strict=True)
    }


def _at(table: Tensor, orders: Tensor) -> float:
    return table.gather(1, orders[:, None] - 1).sum().item()
