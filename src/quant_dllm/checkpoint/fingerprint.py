"""One short number for many tensors: equal numbers, equal weights."""

import hashlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor


class Fingerprint:
    """Hashes named tensors as they come, in any order."""

    def __init__(self) -> None:
        self._hashes: dict[str, str] = {}

    def add(self, name: str, tensor: Tensor) -> None:
        """Take a tensor: its name, type, shape and bytes count."""
        stored = tensor.detach().cpu().contiguous()
        digest = hashlib.sha256(f"{name} {stored.dtype} {list(stored.shape)}".encode())
        digest.update(stored.flatten().view(torch.uint8).numpy().data)
        self._hashes[name] = digest.hexdigest()

    def restore(self, hashes: dict[str, str]) -> None:
        """Take the hashes of tensors that were added in an earlier run."""
        self._hashes |= hashes

    def hashes(self, names: Iterable[str]) -> dict[str, str]:
        """Return the hashes of some of the tensors, for `restore`."""
        return {name: self._hashes[name] for name in names}

    def __iter__(self) -> Iterator[str]:
        """Name the tensors so far, in the order in which they came."""
        return iter(self._hashes)

    def __len__(self) -> int:
        """Count the tensors so far."""
        return len(self._hashes)

    def digest(self) -> str:
        """Return the fingerprint of all tensors so far: 16 hexadecimal digits."""
        lines = "\n".join(f"{name} {self._hashes[name]}" for name in sorted(self._hashes))
        return hashlib.sha256(lines.encode()).hexdigest()[:16]
