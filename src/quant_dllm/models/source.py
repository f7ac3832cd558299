"""Find a model by name and see what it is, without reading its weights."""

from dataclasses import dataclass, replace
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from quant_dllm.checkpoint.folder import METHOD, Folder
from quant_dllm.errors import CheckpointError, ModelError, hint
from quant_dllm.models.config import BackboneConfig
from quant_dllm.models.family import ModelFamily
from quant_dllm.models.limits import check_numbers
from quant_dllm.models.network import Network
from quant_dllm.registry import Registry

FAMILIES = Registry(
    "family",
    {
        "a2d-qwen2": "quant_dllm.models.a2d:QWEN2",
        "a2d-qwen3": "quant_dllm.models.a2d:QWEN3",
        "diffullama": "quant_dllm.models.diffullama:FAMILY",
        "dream": "quant_dllm.models.dream:FAMILY",
        "fast-dllm": "quant_dllm.models.fast_dllm:FAMILY",
        "illada": "quant_dllm.models.illada:FAMILY",
        "llada": "quant_dllm.models.llada:FAMILY",
        "llada-moe": "quant_dllm.models.llada_moe:FAMILY",
        "llada2": "quant_dllm.models.llada2:FAMILY",
        "modernbert": "quant_dllm.models.modernbert:FAMILY",
        "sdar": "quant_dllm.models.sdar:FAMILY",
    },
)
TINY = "tiny"
DOWNLOADED = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")


@dataclass(frozen=True)
class Source:
    """A model on disk.

    Attributes:
        name: How it was asked for.
        folder: Its files.
        family: What it is.
        config: The numbers of its network.
    """

    name: str
    folder: Folder
    family: ModelFamily
    config: BackboneConfig

    @property
    def packed_layers(self) -> dict[str, dict[str, Any]]:
        """Map slots of the network to the stored layout of their weights; empty at 16 bits."""
        quantization = self.folder.quantization
        if not quantization:
            return {}
        if quantization.get("quant_method") != METHOD:
            raise ModelError(
                f"{self.folder.path} is quantized with {quantization.get('quant_method')!r}, which "
                "quant-dllm does not read. Use the 16-bit model."
            )
        layers = quantization.get("layers")
        if not isinstance(layers, dict) or not all(isinstance(v, dict) for v in layers.values()):
            raise CheckpointError(
                f"quantization_config of {self.folder.path} does not describe its layers. "
                "Copy the folder again."
            )
        slots = (*self.layers, *self.empty().outside)
        found = {slot: layers.get(self.upstream(slot)) for slot in slots}
        return {slot: layout for slot, layout in found.items() if layout}

    def check(self, backbone: Network) -> None:
        """Hold the weight files' names and shapes against a network, before any is read.

        Args:
            backbone: The network, on any device, packed where the folder is packed.

        Raises:
            ModelError: A tensor is missing, of another shape, or claimed by nobody.
        """
        claimed = set()
        for name, wanted in backbone.state_dict().items():
            upstream = self.family.upstream(name)
            claimed.add(upstream)
            found = self.folder.shape(upstream)
            if found != tuple(wanted.shape):
                raise ModelError(
                    f"{upstream} of {self.folder.path} has shape {list(found)}; config.json wants "
                    f"{list(wanted.shape)}. The two do not belong together: download both again."
                )
        copies = {self.family.upstream(name): first for name, first in backbone.copies.items()}
        extra = sorted(
            name
            for name in self.folder.tensor_names - claimed
            if not name.endswith("rotary_emb.inv_freq")  # a table that older versions stored
            and not (name in copies and self._equal(name, copies[name]))
        )
        if extra:
            raise ModelError(
                f"{self.folder.path} holds tensors that a {self.family.name} model does not have: "
                f"{', '.join(extra[:3])}{' …' if len(extra) > 3 else ''}. "
                "It is of another architecture."
            )

    def _equal(self, upstream: str, name: str) -> bool:
        """Tell whether a stored tensor is a copy of another."""
        return torch.equal(self.folder.tensor(upstream), self.tensor(name))

    def empty(self) -> Network:
        """Build the 16-bit network on the meta device."""
        return self.family.build(self.config, self.folder.config)

    @cached_property
    def layers(self) -> list[str]:
        """List the slots of all linear layers that are quantized, in order."""
        return self.empty().layers()

    def outside_blocks(self) -> list[str]:
        """Name the tensors of the network that are in no block: embedding, norm, head."""
        return [name for name in self.empty().state_dict() if not name.startswith("blocks.")]

    def parameters(self) -> int:
        """Count the weights of the 16-bit model."""
        return sum(p.numel() for p in self.empty().parameters())

    def upstream(self, slot: str) -> str:
        """Translate a module of the network to upstream's name."""
        return self.family.upstream(slot + ".weight").removesuffix(".weight")

    def rows(
        self, where: Bool[Tensor, "batch length"]
    ) -> tuple[Int[Tensor, " some"], Int[Tensor, " some"]]:
        """Return sequence and row in which each marked position is predicted, see `Network.look`.

        The last row of a shifted model's finished block is that of the text, not of its masked
        copy.
        """
        batch, position = where.nonzero(as_tuple=True)
        row, block = self.family.row(position), self.config.attention_block
        if not block:
            return batch, row
        finished = row // block < position // block
        return batch, torch.where(finished, where.shape[1] + row, row)

    def tensor(self, name: str) -> Tensor:
        """Read one tensor by its name in the network."""
        return self.folder.tensor(self.family.upstream(name))

    def dtype(self, name: str) -> torch.dtype:
        """Read one tensor's type by its name in the network."""
        return self.folder.dtype(self.family.upstream(name))


def locate(model: str | Path) -> Path:
    """Return the folder of a model: itself, the bundled ``tiny``, or a download from the Hub.

    Raises:
        ModelError: There is no such folder, and no such model on the Hub, or no network.
    """
    name, path = str(model), Path(model)
    if path.is_dir():
        return path
    if name == TINY:
        return Path(str(files("quant_dllm"))) / "assets" / TINY
    if isinstance(model, Path) or name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise ModelError(
            f"{name!r} is not a model.{hint(name, [TINY])} "
            "Name a folder, 'tiny', or a Hugging Face id such as GSAI-ML/LLaDA-8B-Base."
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(DOWNLOADED)))
    except Exception as error:  # the Hub's client raises a dozen unrelated kinds
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"{name} is no folder, and could not be had from the Hub: {reason} "
            "Check the name and the network, or give a folder."
        ) from None


def open_model(model: str | Path, attention_block: int | None = None) -> Source:
    """Find a model, read its ``config.json`` and recognise its family.

    Args:
        model: A folder, ``"tiny"``, or a Hugging Face id.
        attention_block: Length of block-causal attention, 0 for full attention, where neither the
            folder nor the family says it right.

    Raises:
        ModelError: Missing or damaged files, or an architecture that we do not know.
    """
    folder = Folder(locate(model))
    family = recognise(folder.config, str(model))
    try:
        config = family.config(folder.config)
    except KeyError as error:
        raise ModelError(
            f"{folder.path / 'config.json'} lacks {error}, which every {family.name} model has. "
            "Download it again."
        ) from None
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(
            f"{folder.path / 'config.json'} has numbers that a {family.name} model cannot have "
            f"({error}). Download it again."
        ) from None
    check_numbers(config, str(folder.path / "config.json"))
    if attention_block is not None:
        config = replace(config, attention_block=attention_block or None)
    return Source(str(model), folder, family, config)


def is_known(config: dict[str, Any]) -> bool:
    """Tell whether a ``config.json`` is of a family that is registered."""
    return _match(config) is not None


def recognise(config: dict[str, Any], name: str) -> ModelFamily:
    """Match architectures first, then model types: several families share a model type.

    Raises:
        ModelError: No family is of that architecture.
    """
    found = _match(config)
    if found is not None:
        return found
    known = [a for key in FAMILIES.targets for a in FAMILIES.get(key).architectures]
    shown = (_architectures(config) or ["no architecture"])[0]
    raise ModelError(
        f"{name} is {shown} (model_type {config.get('model_type')!r}), which is not known."
        f"{hint(shown, known)} Known: {', '.join(known)}. To have a family proposed: quant-dllm "
        "doctor MODEL"
    )


def _match(config: dict[str, Any]) -> ModelFamily | None:
    families: list[ModelFamily] = [FAMILIES.get(key) for key in FAMILIES.targets]
    architectures, kind = _architectures(config), config.get("model_type")
    for wanted in architectures:
        for family in families:
            if wanted in family.architectures:
                return family
    of_kind = (family for family in families if kind in family.model_types)
    return None if architectures else next(of_kind, None)


def _architectures(config: dict[str, Any]) -> list[str]:
    found = config.get("architectures")
    return [name for name in found if isinstance(name, str)] if isinstance(found, list) else []
