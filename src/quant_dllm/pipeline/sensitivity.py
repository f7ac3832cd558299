"""Measure what rounding each layer will cost the 16-bit model: once forward, and once back.

What the blocks receive is kept on the way forward. At the head, tokens are drawn from the model's
own distribution at masked positions, and the gradient of their negative log-likelihood goes back
through one block after the other, each run once more for it. One block is in memory at a time.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from quant_dllm.distributed import gather_facts, rank, sum_counts, sum_to, world
from quant_dllm.errors import RecipeError
from quant_dllm.models.network import Network, NetworkBlock
from quant_dllm.models.stage import Group, Stage
from quant_dllm.pipeline.entry import batches, mine, read_embedding
from quant_dllm.pipeline.job import Job
from quant_dllm.pipeline.original import read_block, read_outside
from quant_dllm.pipeline.spool import Pool, Spool
from quant_dllm.statistics.layer import Account
from quant_dllm.statistics.reduction import ACCOUNT_BYTES, Tree, shards
from quant_dllm.statistics.sensitivity import expected_increase

logger = logging.getLogger(__name__)

POSITIONS = 512  # distributions over the vocabulary that are in memory at once
MOMENT = "moment"

Increases = dict[str, list[list[float]]]
"""By slot of a layer: a row a block of channels, the expected increase at each order, nats."""


class SensitivityPass:
    """One pass over some views of the calibration text.

    The loss is the mean over views of the mean over their masked positions.

    Args:
        job: What is quantized.
        tokens: Tokens of those views, at least one view.
        folder: Where states are kept; its own.
        memory: Bytes of states that may be in memory.
    """

    def __init__(self, job: Job, tokens: int, folder: Path, memory: int):
        self.job, self.folder, self.pool = job, folder, Pool(memory)
        self.network = job.source.empty()
        canvas, text = _some(*job.views, tokens)
        self.hidden = canvas == job.mask_token_id
        if not self.hidden.any():
            raise RecipeError(
                "precision is sensitivity, which is measured where tokens are masked; this "
                "calibration masks none. Set calibration=mcs or precision=uniform."
            )
        self.ids, self.sight = self.network.look(canvas.to(job.device), text.to(job.device))
        numbers = batches(*self.ids.shape)
        self.shards = mine(numbers)
        everything = {n: rows for shard in numbers for n, rows in shard.items()}
        self.rows = {n: everything[n] for shard in self.shards for n in shard}

    def run(self, pause: Callable[[], None]) -> Increases:
        """Measure all layers; ``pause`` is called between two blocks."""
        inputs = self._forward(pause)
        gradients = self._head(inputs.pop())
        found: Increases = {}
        for index in reversed(range(len(inputs))):
            pause()
            gradients = self._back(index, inputs.pop(), gradients, found)
            logger.info("measured the sensitivity of block %d", index)
        gradients.clear()
        told: Increases = {}
        for some in gather_facts(found):
            told |= some
        for index, block in enumerate(self.network.blocks):
            for stage in block.stages:  # type: ignore[union-attr]
                _fill(told, f"blocks.{index}.", stage)
        return told

    def _spool(self, name: str, index: int) -> Spool:
        """Make room for what stands in front of a block."""
        return Spool(self.folder, name, self.pool, self.job.device, index)

    def _block(self, index: int) -> NetworkBlock:
        job, empty = self.job, self.network.blocks[index]
        return read_block(job.source, index, empty, job.device, job.dtype)  # type: ignore[return-value]

    @torch.no_grad()
    def _forward(self, pause: Callable[[], None]) -> list[Spool]:
        """Keep the states in front of each block, and behind the last."""
        spools = [self._spool("forward", 0)]
        embed = read_embedding(self.job, self.network, {})
        for batch, rows in self.rows.items():
            spools[0].put(batch, embed(self.ids[rows]), 0)
        del embed
        for index in range(len(self.network.blocks)):
            pause()
            block, behind = self._block(index), self._spool("forward", index + 1)
            for batch in self.rows:
                behind.put(batch, block(spools[-1][batch], self.sight), index + 1)
            spools.append(behind)
        return spools

    def _head(self, states: Spool) -> Spool:
        """Return the gradients behind the last block."""
        found = self._spool("back", states.generation)
        job = self.job
        head = read_outside(job.source, job.device, job.dtype, scores_only=True)
        for batch, rows in self.rows.items():
            x, hidden = states[batch], self.hidden[rows]
            sequence, row = job.source.rows(hidden)
            # the root: squared gradients add up to the Fisher information of the weighted mean
            weight = (1 / (hidden.sum(1).clamp_min(1) * len(self.ids))).sqrt()
            dice = torch.Generator().manual_seed(job.seed + batch)
            u = torch.rand(len(row), generator=dice)
            gradient = torch.zeros_like(x)
            for s, r, w, v in zip(
                *(t.split(POSITIONS) for t in (sequence, row, weight[sequence], u)), strict=True
            ):
                gradient[s, r] = _score(head, x[s, r], w.to(x.device), v.to(x.device))
            found.put(batch, gradient, states.generation)
        states.clear()
        return found

    def _back(self, index: int, states: Spool, gradients: Spool, found: Increases) -> Spool:
        """Measure the layers of a block that this process owns; return the gradients in front."""
        block, before = self._block(index), self._spool("back", index)
        groups = [group for stage in block.stages for group in stage]
        parts = list(_parts(block, groups))
        for some, crowded in parts:
            trees = [Tree(self.folder if crowded else None) for _ in some]
            for shard in self.shards:
                accounts = [tree.begin() for tree in trees]
                with watched(block, [groups[i] for i in some], accounts):
                    for batch in shard:
                        dx = self._through(block, states[batch], gradients[batch])
                        if some is parts[-1][0]:
                            before.put(batch, dx, index)
                for tree, account in zip(trees, accounts, strict=True):
                    tree.push(account)
            for i, tree in zip(some, trees, strict=True):
                found |= self._measure(index, block, groups[i], tree.total(), i % world())
        states.clear()
        gradients.clear()
        return before

    @torch.enable_grad()
    def _through(self, block: NetworkBlock, x: Tensor, gradient: Tensor) -> Tensor:
        x = x.detach().requires_grad_(True)
        return torch.autograd.grad(block(x, self.sight), x, gradient)[0]

    @torch.no_grad()
    def _measure(
        self, index: int, block: NetworkBlock, group: Group, account: Account, owner: int
    ) -> Increases:
        """Sum a group's account over all processes; its owner returns what its layers cost."""
        (tokens,) = sum_counts([account.tokens])
        if not tokens:
            return {}
        inputs = block.get_parameter(f"{group.layers[0]}.weight").shape[1]
        none = partial(torch.zeros, inputs, inputs, device=self.job.device)
        sums = {}
        for name in (MOMENT, *group.layers):
            mine = account.sums.pop(name, None)
            sums[name] = sum_to(none() if mine is None else mine, owner)
        if rank() != owner:
            return {}
        damping, size = self.job.calibration.damping, self.job.precision.block_size
        return {
            f"blocks.{index}.{name}": expected_increase(
                block.get_parameter(f"{name}.weight"), sums[MOMENT], sums[name], damping, size
            ).tolist()
            for name in group.layers
        }


@torch.enable_grad()
def _score(
    head: Network,
    x: Float[Tensor, "positions width"],
    weight: Tensor,
    u: Float[Tensor, " positions"],
) -> Float[Tensor, "positions width"]:
    """Draw a token at each position; return the gradient of its negative log-likelihood."""
    x = x.detach().requires_grad_(True)
    logits = head.project(x).float()
    loss = F.cross_entropy(logits, draw(logits.detach(), u.to(logits.device)), reduction="none")
    return torch.autograd.grad((loss * weight.to(loss.device)).sum(), x)[0]


@contextmanager
def watched(block: NetworkBlock, groups: list[Group], accounts: list[Account]) -> Iterator[None]:
    """Account for what flows through the layers of some groups, forward and back.

    Each account gets the second moment of the group's inputs, and under each layer's name that of
    the same inputs weighted by the mean square of the gradient at the layer's outputs.
    """

    def note(account: Account, name: str, leads: bool) -> Callable[..., None]:
        def back(x: Tensor, gradient: Tensor) -> None:
            weight = gradient.flatten(0, -2).float().square().mean(1, keepdim=True)
            account.add_product(name, x * weight, x)

        def forward(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            x = args[0].detach().flatten(0, -2).float()
            if leads:
                account.add_product(MOMENT, x, x)
                account.tokens += len(x)
            output.register_hook(partial(back, x))

        return forward

    hooks = [
        block.get_submodule(name).register_forward_hook(note(account, name, not i))
        for group, account in zip(groups, accounts, strict=True)
        for i, name in enumerate(group.layers)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def draw(
    logits: Float[Tensor, "positions vocab"], u: Float[Tensor, " positions"]
) -> Int[Tensor, " positions"]:
    """Draw a token at each position by where ``u`` in [0, 1) falls among its probabilities."""
    ends = logits.softmax(-1).cumsum(-1)
    u = u[:, None] * ends[:, -1:]  # rounding leaves the last end near one
    return torch.searchsorted(ends, u, right=True)[:, 0].clamp(max=logits.shape[-1] - 1)


def _some(
    views: Int[Tensor, "views length"], texts: Int[Tensor, "views length"], tokens: int
) -> tuple[Int[Tensor, "some length"], Int[Tensor, "some length"]]:
    """Take views evenly, the last among them, so that they pass over all timesteps."""
    count = min(len(views), max(1, tokens // views.shape[1]))
    at = (torch.arange(count) + 1) * len(views) // count - 1
    return views[at], texts[at]


def _parts(block: NetworkBlock, groups: list[Group]) -> Iterator[tuple[range, bool]]:
    """Cut groups into those whose sums fit into `ACCOUNT_BYTES`; tell of one that does not."""
    at_once = shards().bit_length()  # see `Tree`
    start = size = 0
    for i, group in enumerate(groups):
        inputs = block.get_parameter(f"{group.layers[0]}.weight").shape[1]
        need = 4 * at_once * (1 + len(group.layers)) * inputs**2
        if size and size + need > ACCOUNT_BYTES:
            yield range(start, i), size > ACCOUNT_BYTES
            start, size = i, 0
        size += need
    yield range(start, len(groups)), size > ACCOUNT_BYTES


def _fill(found: Increases, block: str, stage: Stage) -> None:
    """Give experts that no token chose the mean of the others in their stage."""
    for names in zip(*(group.layers for group in stage if group.routed), strict=True):
        slots = [block + name for name in names]
        known = [found[slot] for slot in slots if slot in found]
        mean = torch.tensor(known, dtype=torch.float64).mean(0).tolist()
        for slot in slots:
            found.setdefault(slot, mean)
