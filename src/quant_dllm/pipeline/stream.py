"""What flows through the network while it is calibrated, and how it passes a block."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

from torch import Tensor

from quant_dllm.models.network import NetworkBlock
from quant_dllm.pipeline.spool import Spool

HELD_BYTES = 1 << 30  # states that wait within a block while its layers are replaced


@dataclass
class Stream:
    """What flows through the network while it is calibrated: this process's share of it.

    Attributes:
        states: Batches [sequences, length, width] in front of the current block, by their number
            among those of all processes.
        shards: The numbers of the batches of each shard.
        windows: How many sequences each batch has, by its number.
        sight: What blocks want beside them, see `Network.sight`.
    """

    states: Spool
    shards: list[range]
    windows: dict[int, int]
    sight: Any


class Run:
    """One batch on its way through a block, waiting where a stage was last asked for."""

    def __init__(self, block: NetworkBlock, x: Tensor, sight: Any):
        self.passing = block.stage_inputs(x, sight)
        self.stage = -1
        self.nbytes = 0

    def receive(self, stage: int) -> Iterable[Tensor]:
        """Go on to a stage that lies ahead; return what its groups receive."""
        received = [*next(islice(self.passing, stage - self.stage - 1, None))]
        self.stage = stage
        self.nbytes = 2 * sum(x.nbytes for x in received)  # the residual stream is held besides
        return received

    def finish(self) -> Tensor:
        """Run what is left; return what is behind the block."""
        try:
            while True:
                next(self.passing)
        except StopIteration as end:
            return end.value


class Runs:
    """The batches of one stream on their way through one block.

    A stage's layers are replaced while all batches wait in front of them, so that nothing is run
    twice; batches whose states do not fit into `HELD_BYTES`, or into what the pool has left, start
    anew for each stage, and so do those that were asked for a stage that lies behind them, or were
    told to `forget`.
    """

    def __init__(self, block: NetworkBlock, stream: Stream):
        self.block, self.stream = block, stream
        self.held: dict[int, Run] = {}

    def receive(self, batch: int, stage: int, routes: Tensor | None = None) -> Iterable[Tensor]:
        """Return what the groups of a stage receive of one batch."""
        x, sight = self.stream.states[batch], self.stream.sight
        if not self.block.resumable:
            return next(islice(self.block.stage_inputs(x, sight, routes), stage, None))
        run = self.held.pop(batch, None)
        if run is None or run.stage >= stage:
            run = Run(self.block, x, sight)
        received = run.receive(stage)
        room = min(HELD_BYTES, self.stream.states.room)
        if run.nbytes + sum(other.nbytes for other in self.held.values()) <= room:
            self.held[batch] = run
        return received

    def forget(self) -> None:
        """Start anew: what was run is no longer what would run."""
        self.held.clear()

    def advance(self, generation: int) -> dict[str, str]:
        """Replace the states by those behind the block; return the checksums of their files."""
        states = self.stream.states
        for batch in (batch for shard in self.stream.shards for batch in shard):
            run = self.held.pop(batch, None)
            behind = run.finish() if run else self.block(states[batch], self.stream.sight)
            states.put(batch, behind, generation)
        return states.turn(generation)
