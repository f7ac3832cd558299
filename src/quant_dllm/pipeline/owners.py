"""Which process solves which layer."""

from collections import Counter
from dataclasses import dataclass

from torch import nn

from quant_dllm.distributed import world
from quant_dllm.models.stage import Group
from quant_dllm.statistics.reduction import shards


@dataclass(frozen=True)
class Owners:
    """Layers, packed into processes by their work: out · in² multiplications each.

    Attributes:
        layers: The process of each layer, the heaviest first.
        shards: Shards that the calibration text is cut into.
    """

    layers: dict[str, int]
    shards: int

    @classmethod
    def assign(cls, block: nn.Module, groups: list[Group]) -> "Owners":
        """Give each layer, the heaviest first, to the process that has the least to do."""
        names = [name for group in groups for name in group.layers]
        shapes = {name: block.get_parameter(f"{name}.weight").shape for name in names}
        work = {name: out * inputs**2 for name, (out, inputs) in shapes.items()}
        loads, owners = [0] * world(), {}
        for name in sorted(names, key=lambda name: -work[name]):
            owners[name] = loads.index(min(loads))
            loads[owners[name]] += work[name]
        return cls(owners, shards())

    def of(self, group: Group) -> list[int]:
        """Name the processes that own layers of a group, that of its first layer first."""
        return list(dict.fromkeys(self.layers[name] for name in group.layers))

    def rounds(self) -> list[list[str]]:
        """Cut the layers into rounds in which each process solves one at most."""
        rounds: list[list[str]] = []
        done: Counter[int] = Counter()
        for name, owner in self.layers.items():
            if done[owner] == len(rounds):
                rounds.append([])
            rounds[done[owner]].append(name)
            done[owner] += 1
        return rounds
