"""Run one block over stored states: collect a stage's inputs, or move on behind the block."""

import copy
import logging
from collections.abc import Iterator
from dataclasses import replace
from itertools import repeat

import torch
from torch import Tensor

from quant_dllm.models.network import NetworkBlock
from quant_dllm.models.stage import Group
from quant_dllm.pipeline.stream import Runs, Stream
from quant_dllm.statistics.layer import NO_STATISTICS, Account, LayerStatistics, Needs

logger = logging.getLogger(__name__)

ACCOUNT_BYTES = 4 << 30  # second moments that are gathered in one pass over the stream
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
    def statistics(self, stage: int) -> Iterator[tuple[Group, LayerStatistics]]:
        """Account for the inputs of a stage, group by group.

        Many experts are gathered some at a time, each time in one pass over the stream: what one
        group receives depends on earlier stages only, so that its layers may be replaced before
        the next group is gathered.
        """
        groups = self.block.stages[stage]
        if self.stream is None:
            yield from ((group, NO_STATISTICS) for group in groups)
            return
        size = self._at_once(groups)
        for start in range(0, len(groups), size):
            some = range(start, min(start + size, len(groups)))
            found = dict(zip(some, self._gather(self.stream, stage, some), strict=True))
            few = [i for i in some if groups[i].routed and _few(found[i])]
            if few:
                _tell(groups, few, found)
                shared = self._gather(self.stream, stage, few, everyone=True)
                for i, everything in zip(few, shared, strict=True):
                    found[i] = replace(everything, chosen=found[i].tokens)
            yield from ((groups[i], found[i]) for i in some)

    @torch.no_grad()
    def advance(self) -> None:
        """Move the streams behind the block."""
        for runs in (self.runs, self.twins):
            if runs:
                runs.advance()

    def forget(self) -> None:
        """Tell that what feeds a stage was changed after the stage was gathered."""
        if self.runs:
            self.runs.forget()

    def _at_once(self, groups: tuple[Group, ...]) -> int:
        """Say how many groups' accounts fit into `ACCOUNT_BYTES`."""
        weights = [self.block.get_parameter(f"{group.layers[0]}.weight") for group in groups]
        channels = max(weight.shape[1] for weight in weights)
        matrices = 2 if Needs.DRIFT in self.needs else 1
        return max(1, ACCOUNT_BYTES // (4 * channels**2 * matrices))

    def _gather(
        self, stream: Stream, stage: int, some: range | list[int], everyone: bool = False
    ) -> list[LayerStatistics]:
        """Account for what some groups of a stage receive, in one pass over the stream."""
        routed = any(self.block.stages[stage][i].routed for i in some)
        assert self.runs is not None, "there is a stream"
        accounts = [Account() for _ in some]
        for batch, x in enumerate(stream.states):
            routes = None
            if routed and (everyone or self.full):  # both networks must send tokens the same way
                routes = self.block.routes(x, stream.sight)
                routes = torch.ones_like(routes) if everyone and routes is not None else routes

            def inputs(runs: Runs, batch=batch, routes=routes) -> Iterator[Tensor]:
                received = runs.receive(batch, stage, routes)
                return (y for i, y in enumerate(received) if i in some)

            twins = inputs(self.twins) if self.twins else repeat(None)
            for account, y, twin in zip(accounts, inputs(self.runs), twins, strict=False):
                account.add(y, twin, Needs.SAMPLES in self.needs)
        return [account.close(self.damping) for account in accounts]


def _few(stats: LayerStatistics) -> bool:
    return stats.tokens * FEW < len(stats.magnitude)


def _tell(groups: tuple[Group, ...], few: list[int], found: dict[int, LayerStatistics]) -> None:
    """Log which experts were calibrated on all tokens."""
    least = min(found[i].tokens for i in few)
    wanted = -(-len(found[few[0]].magnitude) // FEW)
    logger.info(
        "%d of %d experts (%s …) were chosen by fewer than %d tokens, one by %d: calibrated on all",
        len(few), sum(group.routed for group in groups), groups[few[0]].layers[0], wanted, least,
    )  # fmt: skip
