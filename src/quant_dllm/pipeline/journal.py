"""What is saved while a run is under way, so that it can go on: layers, blocks, hidden states.

Everything lies in a hidden folder beside the output:

    identity.json       what the run is made of, and how it was asked for
    allocation.json     bits of all blocks of channels, where one budget is spent over all layers
    block-00003.*       a finished block: tensors as the checkpoint will have them, and its records
    layer-00004-….*     a finished layer of the block under way
    states-00004-….*    the hidden states in front of that block
    states-00004.json   their checksums

A block is finished once its JSON file is there, and that is written last. Then what came before it
goes: its layers, and the states in front of it.
"""

import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass, field
from glob import escape
from pathlib import Path
from types import TracebackType
from typing import Any

from safetensors import safe_open
from torch import Tensor

from quant_dllm.checkpoint import durable
from quant_dllm.checkpoint.folder import MANIFEST
from quant_dllm.checkpoint.lock import lock_of, locked
from quant_dllm.checkpoint.writer import CheckpointWriter, refuse_existing
from quant_dllm.distributed import from_first, rank
from quant_dllm.errors import CheckpointError, QuantDLLMError, RequestError
from quant_dllm.pipeline.identity import difference
from quant_dllm.pipeline.leave import leave

IDENTITY, ALLOCATION, PUBLISHING = "identity.json", "allocation.json", "publishing"


@dataclass
class Journal:
    """The saved part of one run; the first process alone writes blocks and layers.

    Use it in a ``with`` statement: what is in it is removed when the checkpoint was published, and
    when there is nothing in it that could be gone on from.

    Args:
        out: The output folder.
        identity: Of the run, see `identity`.
        request: How it was asked for, for `resume`.
    """

    out: Path
    identity: dict[str, Any]
    request: dict[str, Any]
    blocks: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    views: int = 0
    _held: ExitStack = field(default_factory=ExitStack)

    @property
    def folder(self) -> Path:
        """Name the folder."""
        return folder_of(self.out)

    def __enter__(self) -> "Journal":
        self.blocks = from_first(self._open)
        self.seconds = sum(block["seconds"] for block in self.blocks)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if rank():
            return
        with self._held:
            if not self._worth_keeping(error):
                shutil.rmtree(self.folder, ignore_errors=True)

    def layers(self, index: int) -> dict[str, dict[str, Any]]:
        """Return the facts of the layers of the block under way that are finished, by name."""

        def read() -> dict[str, dict[str, Any]]:
            found = {}
            for path in sorted(self.folder.glob(f"layer-{index:05d}-*.json")):
                try:
                    facts = durable.read_facts(path)
                    durable.check(path.with_suffix(".safetensors"), facts["file"])
                    found[facts["name"]] = facts
                except CheckpointError:  # it is made again
                    path.unlink()
            return found

        return from_first(read)

    def layer(self, index: int, name: str, facts: dict[str, Any]) -> dict[str, Tensor]:
        """Read the tensors of a finished layer."""
        return durable.read_tensors(self._layer(index, name), facts["file"])

    def save_layer(
        self, index: int, name: str, tensors: dict[str, Tensor], facts: dict[str, Any]
    ) -> None:
        """Save a finished layer of the block under way; one that a power cut takes is made anew."""
        with self.explained():
            if rank() == 0:
                facts = facts | {"name": name}
                durable.save(self._layer(index, name), tensors, facts, flush=False)

    def save_allocation(self, facts: dict[str, Any]) -> None:
        """Save how many bits each block of channels of each layer gets."""
        with self.explained():
            if rank() == 0:
                durable.write_facts(self.folder / ALLOCATION, facts)

    def allocation(self) -> dict[str, Any] | None:
        """Return what `save_allocation` saved, if it did.

        Raises:
            CheckpointError: It was changed since.
        """
        path = self.folder / ALLOCATION
        return from_first(lambda: durable.read_facts(path) if path.is_file() else None)

    def save_states(self, index: int, digests: dict[str, str], views: int | None) -> None:
        """Note the states in front of a block; all are on disk.

        Args:
            index: The block.
            digests: Checksums of their files.
            views: Views of the text that they came from, if that is not noted yet.
        """
        self.views = views or self.views
        with self.explained():
            if rank() == 0:
                facts = {"views": self.views, "files": digests}
                durable.write_facts(self.folder / f"states-{index:05d}.json", facts)

    def states(self) -> dict[str, str] | None:
        """Return the checksums of the states in front of the first block that is not finished.

        Raises:
            CheckpointError: A file is not what was saved, or gone.
        """

        def read() -> dict[str, Any] | None:
            path = self.folder / f"states-{len(self.blocks):05d}.json"
            if not path.is_file():
                if self.blocks:  # they cannot be had again
                    raise durable.damaged(path)
                return None
            facts = durable.read_facts(path)
            for name, digest in facts["files"].items():
                durable.check(self.folder / name, digest)
            return facts

        found = from_first(read)
        if found is None:
            return None
        self.views = found["views"]
        return found["files"]

    def save_block(self, index: int, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Save a finished block; remove what led to it."""
        with self.explained():
            if rank() == 0:
                durable.save(self._block(index), tensors, facts)
                self._sweep(index + 1)
        self.blocks.append(facts)

    def hand_over(self, writer: CheckpointWriter) -> None:
        """Give all blocks to the writer of the checkpoint.

        Raises:
            CheckpointError: One is not what was saved.
        """
        for index in range(len(self.blocks)):
            path = self._block(index)
            durable.check(path, durable.read_facts(path.with_suffix(".json"))["file"])
            with safe_open(path, framework="pt") as file:
                writer.add({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118

    def publishing(self) -> None:
        """Note that the checkpoint is about to get its name."""
        with self.explained():
            durable.write(self.folder / PUBLISHING, b"")

    def _open(self) -> list[dict[str, Any]]:
        """Lock the output; read what is saved, or begin."""
        with ExitStack() as stack, self.explained():
            stack.enter_context(locked(self.out))
            _finish_published(self.out)
            refuse_existing(self.out)
            for left in self.out.absolute().parent.glob(f".{escape(self.out.name)}.partial-*"):
                shutil.rmtree(left, ignore_errors=True)
            path = self.folder / IDENTITY
            if path.is_file():
                self._compare(durable.read_facts(path)["identity"])
            else:
                shutil.rmtree(self.folder, ignore_errors=True)
                self.folder.mkdir(parents=True)
                facts = {"identity": self.identity, "request": self.request}
                durable.write_facts(path, facts)
            blocks = list(self._read())
            self._sweep(len(blocks))
            self._held = stack.pop_all()
            return blocks

    def _compare(self, old: dict[str, Any]) -> None:
        found = difference(old, self.identity)
        if found:
            raise RequestError(
                f"{self.out} was begun with other inputs: {found}. Run it as it was begun, or "
                f"remove {self.folder} to begin anew."
            )

    def _read(self) -> Iterator[dict[str, Any]]:
        index = 0
        while (path := self._block(index).with_suffix(".json")).is_file():
            facts = durable.read_facts(path)
            durable.check(self._block(index), facts["file"])
            yield facts
            index += 1

    def _sweep(self, index: int) -> None:
        """Remove what is not needed once all blocks before one are finished."""
        now = f"-{index:05d}"
        for path in self.folder.iterdir():
            kind, _, rest = path.name.partition("-")
            old = kind in ("layer", "states") and not f"-{rest}".startswith(now)
            if old or path.name.endswith(durable.PART):
                path.unlink()

    def _worth_keeping(self, error: BaseException | None) -> bool:
        """Tell whether there is anything to go on from, and whether the inputs are not to blame."""
        if error is None:
            return False
        blamed = isinstance(error, QuantDLLMError) and isinstance(error, ValueError)
        if blamed and not isinstance(error, CheckpointError):
            return False
        allocated = (self.folder / ALLOCATION).is_file()
        return allocated or bool(self.blocks) or any(self.folder.glob("layer-*.json"))

    def explained(self) -> AbstractContextManager[None]:
        """Turn what the system refuses while something is saved into one line."""
        return durable.explained(self.out, self.left)

    @property
    def left(self) -> str:
        """Say what is left of a run that could not write."""
        return f"What is finished is saved; free space and go on with: quant-dllm resume {self.out}"

    def _block(self, index: int) -> Path:
        return self.folder / f"block-{index:05d}.safetensors"

    def _layer(self, index: int, name: str) -> Path:
        return self.folder / f"layer-{index:05d}-{name}.safetensors"


def folder_of(out: Path) -> Path:
    """Name the folder in which an unfinished run is saved."""
    return out.absolute().parent / f".{out.name}.unfinished"


def saved_request(out: Path) -> dict[str, Any]:
    """Return how an unfinished run was asked for.

    Raises:
        RequestError: There is none.
    """
    finish_published(out)
    path = folder_of(out) / IDENTITY
    if (out / MANIFEST).is_file():
        raise RequestError(f"{out} is finished. There is nothing to go on with.")
    if not path.is_file():
        raise RequestError(
            f"{out} was not begun: {path.parent} is not there. Begin with: quant-dllm quantize"
        )
    return durable.read_facts(path)["request"]


def finish_published(out: Path) -> None:
    """Finish a run that was killed right after its checkpoint got its name."""
    if (out / MANIFEST).is_file() and (lock_of(out).exists() or folder_of(out).exists()):
        with suppress(CheckpointError), locked(out):
            _finish_published(out)


def _finish_published(out: Path) -> None:
    """Write page and card; remove what was saved."""
    folder = folder_of(out)
    if (folder / PUBLISHING).is_file() and (out / MANIFEST).is_file():
        with suppress(QuantDLLMError):  # a checkpoint that was damaged since has none
            leave(out, scratch=folder)
        shutil.rmtree(folder, ignore_errors=True)
