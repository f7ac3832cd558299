"""Read a model folder: ``config.json`` and safetensors, one tensor at a time."""

import json
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quant_dllm.errors import CheckpointError, ModelError

METHOD = "quant_dllm"
FORMAT_VERSION = 1
MANIFEST = "quant_dllm.json"
SHARD_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*\.safetensors")
DTYPES = {"U8": torch.uint8, "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}


class Folder:
    """The files of one model, opened when they are asked for.

    Raises:
        ModelError: From every method, where a file is missing or damaged; the message names it.
    """

    def __init__(self, path: Path):
        self.path = path

    @cached_property
    def config(self) -> dict[str, Any]:
        """Read ``config.json``."""
        return self._json("config.json")

    @property
    def quantization(self) -> dict[str, Any] | None:
        """Return ``quantization_config`` of a folder that somebody quantized.

        Raises:
            CheckpointError: It is ours, but of a later format than this version reads.
        """
        found = self.config.get("quantization_config")
        if found is not None and not isinstance(found, dict):
            raise CheckpointError(
                f"quantization_config of {self.path} is no JSON object. Copy the folder again."
            )
        if found and found.get("quant_method") == METHOD:
            version = found.get("format_version")
            if not isinstance(version, int) or version > FORMAT_VERSION:
                raise CheckpointError(
                    f"{self.path} has format version {version!r}; this quant-dllm reads up to "
                    f"{FORMAT_VERSION}. Upgrade with: pip install -U quant-dllm"
                )
        return found

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """Read ``quant_dllm.json``."""
        return self._json(MANIFEST)

    @cached_property
    def shards(self) -> list[Path]:
        """List the weight files."""
        index = self.path / "model.safetensors.index.json"
        names = ["model.safetensors"]
        if index.is_file():
            homes = self._json(index.name).get("weight_map")
            names = sorted(set(_file_names(index, homes)))
        missing = [name for name in names if not (self.path / name).is_file()]
        if missing or not names:
            advice = "Copy or download the folder again."
            if pickles := sorted(p.name for p in self.path.glob("*.bin")):
                advice = (
                    f"{pickles[0]} is a pickle, which can run code and is never read: "
                    "convert it to safetensors."
                )
            raise ModelError(
                f"{self.path} lacks {', '.join(missing[:3]) or 'weights'}; model.safetensors or "
                f"every shard of its index is wanted. {advice}"
            )
        return [self.path / name for name in names]

    @cached_property
    def _homes(self) -> dict[str, Any]:
        """Map tensor names to their opened files."""
        from safetensors import SafetensorError, safe_open

        homes = {}
        for shard in self.shards:
            try:
                file = safe_open(shard, framework="pt")
            except (SafetensorError, OSError, ValueError) as error:
                raise ModelError(
                    f"{shard} is not a whole safetensors file ({error}). Copy or download it again."
                ) from None
            homes |= dict.fromkeys(file.keys(), file)
        return homes

    def close(self) -> None:
        """Close the weight files: what was read of them no longer counts as resident memory."""
        self.__dict__.pop("_homes", None)

    @property
    def tensor_names(self) -> set[str]:
        """Name every tensor in the weight files."""
        return set(self._homes)

    def tensor(self, name: str) -> Tensor:
        """Read one tensor."""
        self.dtype(name)
        return self._home(name).get_tensor(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """Read one tensor's shape without its data."""
        return tuple(self._home(name).get_slice(name).get_shape())

    def dtype(self, name: str) -> torch.dtype:
        """Read one tensor's type without its data."""
        found = self._home(name).get_slice(name).get_dtype()
        if found not in DTYPES:
            raise ModelError(
                f"{name} of {self.path} is of type {found}; {', '.join(DTYPES)} are wanted. "
                "Convert the model to 16 bits."
            )
        return DTYPES[found]

    @property
    def weight_bytes(self) -> int:
        """Count the bytes of the weight files, as they lie on disk."""
        return sum(shard.stat().st_size for shard in self.shards)

    @property
    def total_bytes(self) -> int:
        """Count the bytes of every file of the folder."""
        return sum(file.stat().st_size for file in self.path.rglob("*") if file.is_file())

    def _home(self, name: str) -> Any:
        if name not in self._homes:
            raise ModelError(
                f"{self.path} has no tensor {name}; it is incomplete or of another architecture. "
                "Copy or download it again."
            )
        return self._homes[name]

    def _json(self, name: str) -> dict[str, Any]:
        path = self.path / name
        try:
            found = json.loads(path.read_text())
        except FileNotFoundError:
            raise ModelError(
                f"{self.path} has no {name}; a model folder holds config.json and safetensors. "
                "Check the path."
            ) from None
        except (OSError, ValueError, RecursionError) as error:
            raise ModelError(f"{path} cannot be read: {error}. Copy it again.") from None
        if not isinstance(found, dict):
            raise ModelError(f"{path} holds no JSON object. Copy it again.")
        return found


def _file_names(index: Path, homes: Any) -> Iterator[str]:
    """Yield the files that an index names; each must be a plain name beside it.

    Raises:
        ModelError: It names a path, or is no index.
    """
    if not isinstance(homes, dict):
        raise ModelError(f"{index} has no weight_map. Copy it again.")
    for name in homes.values():
        if not isinstance(name, str) or not SHARD_NAME.fullmatch(name):
            raise ModelError(
                f"{index} names the weight file {name!r}; the name of a .safetensors file in the "
                "same folder is wanted. Do not use this folder."
            )
        yield name
