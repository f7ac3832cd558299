"""One block under way: its layers, solved in this process, in others, or in an earlier run."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from quant_dllm.distributed import broadcast_facts, broadcast_tensors, rank
from quant_dllm.models.network import NetworkBlock
from quant_dllm.models.stage import Group
from quant_dllm.pipeline.allocation import Allocation
from quant_dllm.pipeline.job import Job
from quant_dllm.pipeline.journal import Journal
from quant_dllm.pipeline.owners import Owners
from quant_dllm.record import LayerRecord
from quant_dllm.statistics.layer import LayerStatistics
from quant_dllm.weights.base import WEIGHTS, QuantizedWeight

Solved = tuple[QuantizedWeight, LayerRecord]
SCALE = "input_scale"


@dataclass
class BlockWork:
    """A block and what has become of its layers.

    Attributes:
        index: Its number.
        block: Its modules; a solved layer's weight is what its codes stand for.
        weights: Float32 weights [out, in] of the layers that are not solved yet.
        packed, records: Of those that are.
        allocation: Bits of blocks of channels, where they were allocated before.
        scales: What the input channels of layers were multiplied by, where the method wants it.
    """

    job: Job
    index: int
    block: NetworkBlock
    weights: dict[str, Tensor]
    journal: Journal
    allocation: Allocation = field(default_factory=dict)
    packed: dict[str, QuantizedWeight] = field(default_factory=dict)
    records: dict[str, LayerRecord] = field(default_factory=dict)
    scales: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Look for layers that an earlier run finished."""
        self._saved = self.journal.layers(self.index)

    def holds(self, names: Iterable[str]) -> bool:
        """Tell whether an earlier run finished all of these layers."""
        return all(name in self._saved for name in names)

    def saved_scale(self, group: Group) -> Tensor | None:
        """Return what an earlier run multiplied the group's input channels by, if it did."""
        for name in group.layers:
            if name in self._saved:
                return self._tensors(name)[SCALE]
        return None

    def round(
        self,
        names: list[str],
        owners: Owners,
        stats: dict[str, LayerStatistics],
        solve: Callable[["BlockWork", str, LayerStatistics], Solved],
    ) -> Iterator[LayerRecord]:
        """Solve layers, one a process at most, and put them in their places on all."""
        mine = {
            name: solve(self, name, stats[name])
            for name in names
            if name not in self._saved and owners.layers[name] == rank()
        }
        for name in names:
            if name in self._saved:
                packed, record = self._revive(name)
            else:
                packed, record = share(mine.pop(name, None), owners.layers[name], self.job.device)
                self._save(name, packed, record)
            self.packed[name], self.records[name] = packed, record
            del self.weights[name]
            weight = packed.dequantize().to(self.job.dtype)
            self.block.get_submodule(name).weight.data = weight  # type: ignore[union-attr]
            yield record

    def _save(self, name: str, packed: QuantizedWeight, record: LayerRecord) -> None:
        scale = {SCALE: self.scales[name]} if name in self.scales else {}
        facts = describe(packed, record)
        self.journal.save_layer(self.index, name, packed.tensors() | scale, facts)

    def _revive(self, name: str) -> Solved:
        tensors = self._tensors(name)
        tensors.pop(SCALE, None)
        return revive(tensors, self._saved[name])

    def _tensors(self, name: str) -> dict[str, Tensor]:
        tensors = self.journal.layer(self.index, name, self._saved[name])
        return {key: tensor.to(self.job.device) for key, tensor in tensors.items()}


def share(solved: Solved | None, owner: int, device: torch.device) -> Solved:
    """Return on all processes what one of them solved."""
    facts = None if solved is None else describe(*solved)
    tensors = None if solved is None else solved[0].tensors()
    facts = broadcast_facts(facts, owner)
    tensors = broadcast_tensors(tensors, owner, device)
    return solved or revive(tensors, facts)


def describe(packed: QuantizedWeight, record: LayerRecord) -> dict[str, Any]:
    """Say in JSON's types what the tensors of a solved layer do not."""
    return {"kind": packed.kind, "layout": packed.layout(), "record": record.to_dict()}


def revive(tensors: dict[str, Tensor], facts: dict[str, Any]) -> Solved:
    """Make a solved layer of its tensors and what `describe` said."""
    kind = WEIGHTS.get(facts["kind"])
    return kind(**tensors, **facts["layout"]), LayerRecord(**facts["record"])
