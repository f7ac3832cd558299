"""Hidden states of the calibration text: some in memory, all of them on disk.

States stand in front of one model block, the generation of that number, in batches. Every batch is
written to a file when it is made, so that a run can go on; it also stays in memory as long as the
pool has room. Batches are read in one order again and again, so the pool keeps the first that fit:
throwing out the least recently used would throw out each batch just before it is read.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from quant_dllm.checkpoint import durable

GENERATION = "states-{:05d}-"


@dataclass
class Pool:
    """Memory for hidden states.

    Attributes:
        limit: Bytes.
        used: Bytes that are taken.
    """

    limit: int
    used: int = 0

    def take(self, size: int) -> bool:
        """Take memory, if there is so much left."""
        fits = self.used + size <= self.limit
        self.used += size * fits
        return fits


@dataclass
class Spool:
    """One stream of states.

    Args:
        folder: Where its files go.
        name: What tells it from other streams.
        pool: Memory that it may use, shared with other streams.
        device: Where batches are handed out.
        generation: The model block in front of which the states stand.
    """

    folder: Path
    name: str
    pool: Pool
    device: torch.device
    generation: int = 0
    digests: dict[str, str] = field(default_factory=dict)
    _kept: dict[int, Tensor] = field(default_factory=dict)

    def __getitem__(self, batch: int) -> Tensor:
        """Return a batch [sequences, length, width]."""
        if batch in self._kept:
            return self._kept[batch].to(self.device)
        path = self._path(batch, self.generation)
        states = durable.read_tensors(path, self.digests[path.name])["states"]
        if self.pool.take(states.nbytes):
            self._kept[batch] = states
        return states.to(self.device)

    @property
    def room(self) -> int:
        """Tell how many bytes of the pool are left for what is made of the states."""
        return self.pool.limit - self.pool.used if self.device.type == "cpu" else sys.maxsize

    def put(self, batch: int, states: Tensor, generation: int) -> None:
        """Replace a batch by what it became; the file of the generation before stays."""
        states = states.detach().cpu().contiguous()
        path = self._path(batch, generation)
        self.digests[path.name] = durable.write_tensors(path, {"states": states})
        if batch in self._kept or self.pool.take(states.nbytes):
            self._kept[batch] = states

    def turn(self, generation: int) -> dict[str, str]:
        """Move on to another generation; return the checksums of its files, by name."""
        start = GENERATION.format(generation)
        start += f"{self.name}-"
        self.digests = {n: d for n, d in self.digests.items() if n.startswith(start)}
        self.generation = generation
        return dict(self.digests)

    def clear(self) -> None:
        """Give memory and files back."""
        self.pool.used -= sum(states.nbytes for states in self._kept.values())
        self._kept.clear()
        for name in self.digests:
            (self.folder / name).unlink()
        self.digests = {}

    def _path(self, batch: int, generation: int) -> Path:
        name = f"{GENERATION.format(generation)}{self.name}-{batch:05d}.safetensors"
        return self.folder / name
