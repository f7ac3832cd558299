"""How long a run will take: its first block is quantized on part of the text, and thrown away.

If the recipe tunes all scales, some updates are made and timed as well, see `planning.tuning`.

What grows with the text is told from what does not by the moments at which the run saves something:
those are the same in every run, and the pipeline need not know that it is timed.
"""

import math
import time
from collections.abc import Hashable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from quant_dllm.memory import PeakMemory
from quant_dllm.pipeline.block import SCALE
from quant_dllm.pipeline.entry import BATCH_TOKENS
from quant_dllm.pipeline.job import Job
from quant_dllm.pipeline.journal import Journal
from quant_dllm.pipeline.outside import pack_outside
from quant_dllm.pipeline.quantize import POOL_BYTES, quantize_blocks
from quant_dllm.pipeline.signals import Stop
from quant_dllm.pipeline.solved import revive
from quant_dllm.planning.tuning import time_tuning
from quant_dllm.statistics.layer import LayerStatistics
from quant_dllm.statistics.reduction import shards
from quant_dllm.weights.base import QuantizedWeight


@dataclass
class BlockTime:
    """Seconds of one block.

    Attributes:
        reading, rounding, saving: They do not depend on how much text there is.
        looking: Gathering statistics; it grows with the text.
        moving: Bringing the text behind the block, likewise; nobody does it behind the last one.
    """

    reading: float = 0.0
    rounding: float = 0.0
    saving: float = 0.0
    looking: float = 0.0
    moving: float = 0.0

    def seconds(self, share: float, last: bool) -> float:
        """Tell the time of such a block, with so many times as much text.

        What is saved of a block is read and written once more, into the checkpoint.
        """
        fixed = self.reading + self.rounding + 2 * self.saving
        return fixed + share * (self.looking + (0.0 if last else self.moving))


@dataclass(frozen=True)
class Timing:
    """What a part of a run took, and what it says of the whole.

    Attributes:
        outside: Seconds of packing embedding and head.
        allocating: Seconds of measuring sensitivities, which looks at so much text and no more.
        entering: Seconds in front of the first block, of the part of the text.
        blocks: One for each block of the model; those alike share theirs.
        share: How much more text the whole run looks at.
        memory: Peak memory of the process, bytes.
        tuning: Seconds of tuning.
        behind: Whether the text passes the last block too.
    """

    outside: float
    allocating: float
    entering: float
    blocks: list[BlockTime]
    share: float
    memory: int | None
    tuning: float
    behind: bool

    @property
    def seconds(self) -> float:
        """Tell the time of a whole run."""
        *first, last = self.blocks
        turns = sum(block.seconds(self.share, last=False) for block in first)
        before = self.outside + self.allocating + self.share * self.entering
        return before + turns + last.seconds(self.share, last=not self.behind) + self.tuning


class Enough(Exception):
    """Every kind of block was timed."""


@dataclass
class StopWatch(Journal):
    """A journal that notes how long it was until each thing was saved.

    Attributes:
        until: The last block that is timed.
        found: Times of the blocks so far.
        packed: Their layers, by slot.
        allocating: Seconds until bits were allocated.
        entering: Seconds until the text was in front of the first block.
    """

    until: int = 0
    found: list[BlockTime] = field(default_factory=list)
    packed: dict[str, QuantizedWeight] = field(default_factory=dict)
    allocating: float = 0.0
    entering: float = 0.0
    _last: float = field(default_factory=lambda: time.monotonic())

    def layers(self, index: int) -> dict[str, dict[str, Any]]:
        """Note that a block was read."""
        self.found.append(BlockTime(reading=self._lap()))
        return super().layers(index)

    def save_layer(
        self, index: int, name: str, tensors: dict[str, Tensor], facts: dict[str, Any]
    ) -> None:
        """Note that a layer was looked at, rounded and saved."""
        self.found[-1].looking += self._lap()
        super().save_layer(index, name, tensors, facts)
        self.found[-1].saving += self._lap()
        stored = {key: tensor for key, tensor in tensors.items() if key != SCALE}
        self.packed[f"blocks.{index}.{name}"] = revive(stored, facts)[0]

    def save_allocation(self, facts: dict[str, Any]) -> None:
        """Note that bits were allocated."""
        super().save_allocation(facts)
        self.allocating = self._lap()

    def save_states(self, index: int, digests: dict[str, str], views: int | None) -> None:
        """Note that the text is in front of a block."""
        super().save_states(index, digests, views)
        if index:
            self.found[-1].moving = self._lap()
        else:
            self.entering = self._lap()

    def save_block(self, index: int, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Tell rounding from looking, by the records; stop where enough is known."""
        super().save_block(index, tensors, facts)
        block = self.found[-1]
        block.saving += self._lap()
        block.rounding = sum(layer["seconds"] for layer in facts["layers"])
        block.looking = max(block.looking - block.rounding, 0.0)
        if index == self.until:
            raise Enough

    def _lap(self) -> float:
        now = time.monotonic()
        passed, self._last = now - self._last, now
        return passed


def time_blocks(job: Job) -> Timing:
    """Quantize the first block of each kind, on part of the text: a full batch of each shard."""
    part, share = job, 1.0
    if job.windows is not None:
        few = shards() * max(1, BATCH_TOKENS // job.windows.shape[1])
        part, share = replace(job, windows=job.windows[:few]), max(1.0, len(job.windows) / few)
    kinds = _kinds(job)
    peak, began = PeakMemory(job.device.type), time.monotonic()
    packed = pack_outside(part, seen=_noise(part) if part.head_behind else None)
    outside = time.monotonic() - began
    with TemporaryDirectory() as folder:
        watch = StopWatch(Path(folder) / "timed", {}, {}, until=max(map(kinds.index, kinds)))
        with suppress(Enough), watch:
            for _ in quantize_blocks(part, watch, Stop(), packed, POOL_BYTES):
                pass
    memory = peak.process
    times = {kind: block for kind, block in zip(kinds, watch.found, strict=False)}
    return Timing(
        outside, watch.allocating, watch.entering, [times[kind] for kind in kinds], share, memory,
        time_tuning(job, watch.packed, packed) if job.tuning else 0.0, job.to_the_end,
    )  # fmt: skip


def _noise(job: Job) -> LayerStatistics:
    """Make statistics for a head; how long it takes to round it does not depend on them."""
    width = job.source.config.width
    x = torch.randn(2 * width, width, generator=torch.Generator().manual_seed(0)).to(job.device)
    return LayerStatistics.gather([x], job.calibration.damping, job.outside.needs, [x])


def _kinds(job: Job) -> list[Hashable]:
    """Tell the blocks apart by the sizes of their layers."""
    shapes = job.source.empty().state_dict()
    kinds: list[list[tuple[str, int]]] = [[] for _ in range(job.source.config.blocks)]
    for slot in job.source.layers:
        _, index, name = slot.split(".", 2)
        kinds[int(index)].append((name, math.prod(shapes[f"{slot}.weight"].shape)))
    return [tuple(kind) for kind in kinds]
