"""One block under way: its layers, solved in this process, in others, or in an earlier run."""

import copy
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain

import torch
from torch import Tensor, nn

from quant_dllm.distributed import rank
from quant_dllm.models.load import place, place_buffers
from quant_dllm.models.network import NetworkBlock
from quant_dllm.models.stage import Group
from quant_dllm.pipeline.allocation import Allocation
from quant_dllm.pipeline.job import Job
from quant_dllm.pipeline.journal import Journal
from quant_dllm.pipeline.owners import Owners
from quant_dllm.pipeline.solved import Solved, describe, revive, share
from quant_dllm.record import LayerRecord
from quant_dllm.statistics.layer import LayerStatistics
from quant_dllm.weights.base import QuantizedWeight

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
        tuned: Relative errors of its output, before and after each pass, where it was tuned.
        hashed: Tensors in the job's two fingerprints before this block was read.
    """

    job: Job
    index: int
    block: NetworkBlock
    weights: dict[str, Tensor]
    journal: Journal
    hashed: tuple[int, int]
    allocation: Allocation = field(default_factory=dict)
    packed: dict[str, QuantizedWeight] = field(default_factory=dict)
    records: dict[str, LayerRecord] = field(default_factory=dict)
    scales: dict[str, Tensor] = field(default_factory=dict)
    tuned: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Look for layers that an earlier run finished."""
        self._saved = self.journal.layers(self.index)

    @classmethod
    def read(
        cls, job: Job, index: int, empty: nn.Module, journal: Journal, allocation: Allocation
    ) -> "BlockWork":
        """Read a block onto the device.

        Args:
            job: What is quantized.
            index: The block's number.
            empty: The block on the meta device.
            journal: What an earlier run saved.
            allocation: Bits of blocks of channels, where they were allocated before.

        Raises:
            ModelError: A weight is not finite.
        """
        hashed = (len(job.packed), len(job.base))
        block: NetworkBlock = copy.deepcopy(empty)  # type: ignore[assignment]
        groups = chain.from_iterable(block.stages)
        linears = {f"{name}.weight": name for group in groups for name in group.layers}
        weights = {}
        for name in dict(block.named_parameters()):
            tensor = job.read(f"blocks.{index}.{name}").to(job.device)
            place(block, name, tensor, job.device, job.dtype)
            if name in linears:  # in float32 the block's own will do: nothing writes into it
                own = block.get_parameter(name).data
                weights[linears[name]] = own if own.dtype == torch.float32 else tensor.float()
        place_buffers(block, job.device)
        job.source.folder.close()
        return cls(job, index, block.eval(), weights, journal, hashed, allocation)

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
                self._save_layer(name, packed, record)
            self.records[name] = record
            del self.weights[name]
            self.place(name, packed)
            yield record

    def place(self, name: str, packed: QuantizedWeight) -> None:
        """Let a layer's weight be what a packed one stands for."""
        self.packed[name] = packed
        weight = packed.dequantize().to(self.job.dtype)
        self.block.get_submodule(name).weight.data = weight  # type: ignore[union-attr]

    def save(self, began: float) -> None:
        """Save the finished block in the journal.

        Args:
            began: When work on it began, by `time.monotonic`.
        """
        tensors = self._stored()
        prints = {"packed": self.job.packed, "base": self.job.base}
        hashes = {
            key: found.hashes(list(found)[start:])
            for (key, found), start in zip(prints.items(), self.hashed, strict=True)
        }
        layers = [self.records[name].to_dict() for name in self.packed]
        facts = {"seconds": time.monotonic() - began, "layers": layers, "tuned": self.tuned}
        facts |= hashes
        self.journal.save_block(self.index, tensors, facts)

    def _stored(self) -> dict[str, Tensor]:
        """Return what the checkpoint stores of the block; packed tensors are fingerprinted.

        What is not packed has the dtype that it has in the model's files.
        """
        found = {}
        for name, weight in self.packed.items():
            upstream = self.job.source.upstream(f"blocks.{self.index}.{name}")
            for key, tensor in weight.tensors().items():
                self.job.packed.add(f"{upstream}.{key}", tensor)
                found[f"{upstream}.{key}"] = tensor
        for name, parameter in self.block.named_parameters():
            if name.removesuffix(".weight") not in self.packed:
                upstream = self.job.source.family.upstream(f"blocks.{self.index}.{name}")
                found[upstream] = parameter.data.to(self.job.source.folder.dtype(upstream))
        return found

    def _save_layer(self, name: str, packed: QuantizedWeight, record: LayerRecord) -> None:
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
