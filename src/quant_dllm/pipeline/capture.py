"""Run one block over stored states: collect a stage's inputs, or move on behind the block."""

import copy
import logging
import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import repeat

import torch
from torch import Tensor

from quant_dllm.distributed import rank
from quant_dllm.models.network import NetworkBlock
from quant_dllm.models.stage import Group
from quant_dllm.pipeline.owners import Owners
from quant_dllm.pipeline.stream import Runs, Stream
from quant_dllm.statistics.layer import NO_STATISTICS, Account, LayerStatistics, Needs
from quant_dllm.statistics.reduction import ACCOUNT_BYTES, Tree, reduce_accounts

logger = logging.getLogger(__name__)

FEW = 8  # an expert is calibrated on its own tokens if they are an eighth of its input channels


class Capture:
    """Gathers the statistics of one block, stage after stage, while its layers are replaced.

    Each group of layers that share their input has an account of its own. An expert that too few
    tokens chose (see `FEW`) is calibrated as if all tokens had chosen it.

    Args:
        block: The block; earlier stages may be quantized already when a later one is gathered.
        stream: What flows into it; ``None`` where the recipe looks at no data.
        full: The stream of the full-precision model, where drift is asked for.
        needs: What to gather.
        damping: Of the statistics.
    """

    def __init__(
        self,
        block: NetworkBlock,
        stream: Stream | None,
        full: Stream | None,
        needs: Needs,
        damping: float,
    ):
        self.block, self.stream, self.full = block, stream, full
        self.needs, self.damping = needs, damping
        self.original = copy.deepcopy(block) if full else block
        self.runs = Runs(block, stream) if stream else None
        self.twins = Runs(self.original, full) if full else None

    @torch.no_grad()
    def statistics(
        self, stage: int, some: range, owners: Owners
    ) -> list[tuple[Group, LayerStatistics]]:
        """Account for the inputs of some groups of a stage, in one pass over the stream.

        What one group receives depends on earlier stages only, so that its layers may be replaced
        before the next groups are gathered. The sums are there in the processes that own a layer
        of the group; the others know the tokens alone.
        """
        groups = self.block.stages[stage]
        if self.stream is None:
            return [(groups[i], NO_STATISTICS) for i in some]
        found = dict(zip(some, self._gather(self.stream, stage, some, owners), strict=True))
        few = [i for i in some if groups[i].routed and self._few(groups[i], found[i])]
        if few:
            self._tell(groups, few, found)
            shared = self._gather(self.stream, stage, few, owners, everyone=True)
            for i, everything in zip(few, shared, strict=True):
                found[i] = replace(everything, chosen=found[i].tokens)
        return [(groups[i], found[i]) for i in some]

    def parts(self, stage: int) -> Iterator[range]:
        """Cut the groups of a stage into those that are gathered in one pass."""
        groups = self.block.stages[stage]
        size = max(1, self._at_once(groups)) if self.stream else len(groups)
        for start in range(0, len(groups), size):
            yield range(start, min(start + size, len(groups)))

    @torch.no_grad()
    def advance(self, generation: int) -> dict[str, str]:
        """Move the stream behind the block; return the checksums of its files."""
        return self.runs.advance(generation) if self.runs else {}

    @torch.no_grad()
    def advance_full(self, generation: int) -> dict[str, str]:
        """Do so with the full-precision model's, if there is one."""
        return self.twins.advance(generation) if self.twins else {}

    def forget(self) -> None:
        """Tell that what feeds a stage was changed after the stage was gathered."""
        if self.runs:
            self.runs.forget()

    def _at_once(self, groups: tuple[Group, ...]) -> int:
        """Say how many groups' accounts fit into `ACCOUNT_BYTES`; none does if 0."""
        assert self.stream is not None, "what gathers nothing needs no room"
        matrices = 2 if Needs.DRIFT in self.needs else 1
        at_once = 1 + math.log2(max(2, len(self.stream.shards)))  # see `Tree`
        size = 4 * max(map(self._channels, groups)) ** 2 * matrices * at_once
        return int(ACCOUNT_BYTES / size)

    def _gather(
        self,
        stream: Stream,
        stage: int,
        some: range | list[int],
        owners: Owners,
        everyone: bool = False,
    ) -> list[LayerStatistics]:
        """Account for what some groups of a stage receive, in one pass over the stream."""
        groups = [self.block.stages[stage][i] for i in some]
        folder = None if self._at_once(self.block.stages[stage]) else stream.states.folder
        trees = [Tree(folder) for _ in some]
        for shard in stream.shards:
            accounts = [tree.begin() for tree in trees]
            self._visit(stream, shard, stage, some, accounts, everyone)
            for tree, account in zip(trees, accounts, strict=True):
                account.thin(owners.shards)
                tree.push(account)
        totals = reduce_accounts(
            [tree.total() for tree in trees], [self._channels(group) for group in groups],
            [owners.of(group) for group in groups], self.needs, rank(), stream.states.device,
        )  # fmt: skip
        return [_closed(account, self.damping) for account in totals]

    def _visit(
        self,
        stream: Stream,
        shard: range,
        stage: int,
        some: range | list[int],
        accounts: list[Account],
        everyone: bool,
    ) -> None:
        """Add what some groups of a stage receive of one shard to their accounts."""
        routed = any(self.block.stages[stage][i].routed for i in some)
        assert self.runs is not None, "there is a stream"
        for batch in shard:
            routes = None
            if routed and (everyone or self.full):  # both networks must send tokens the same way
                routes = self.block.routes(stream.states[batch], stream.sight)
                routes = torch.ones_like(routes) if everyone and routes is not None else routes

            def inputs(runs: Runs, batch=batch, routes=routes) -> Iterator[Tensor]:
                received = runs.receive(batch, stage, routes)
                return (y for i, y in enumerate(received) if i in some)

            twins = inputs(self.twins) if self.twins else repeat(None)
            for account, y, twin in zip(accounts, inputs(self.runs), twins, strict=False):
                account.add(y, twin, Needs.SAMPLES in self.needs)

    def _channels(self, group: Group) -> int:
        return self.block.get_parameter(f"{group.layers[0]}.weight").shape[1]

    def _few(self, group: Group, stats: LayerStatistics) -> bool:
        return stats.tokens * FEW < self._channels(group)

    def _tell(
        self, groups: tuple[Group, ...], few: list[int], found: dict[int, LayerStatistics]
    ) -> None:
        """Log which experts were calibrated on all tokens."""
        least = min(found[i].tokens for i in few)
        wanted = -(-self._channels(groups[few[0]]) // FEW)
        logger.info(
            "%d of %d experts (%s …) were chosen by fewer than %d tokens, one by %d: "
            "calibrated on all",
            len(few), sum(group.routed for group in groups), groups[few[0]].layers[0], wanted,
            least,
        )  # fmt: skip


def _closed(account: Account, damping: float) -> LayerStatistics:
    """Close an account; where another process has the sums, only the tokens are known."""
    if account.sums:
        return account.close(damping)
    return replace(NO_STATISTICS, tokens=account.tokens)
