"""Load a model: full precision or packed, straight onto its device, never both at once."""

import logging
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from quant_dllm.checkpoint.fingerprint import Fingerprint
from quant_dllm.checkpoint.folder import Folder
from quant_dllm.distributed import local_device
from quant_dllm.embedding import QuantEmbedding
from quant_dllm.errors import CheckpointError, RequestError
from quant_dllm.linear import QuantLinear
from quant_dllm.memory import PeakMemory
from quant_dllm.models.experts import Router
from quant_dllm.models.mask_token import resolve_mask_token
from quant_dllm.models.model import DiffusionLM
from quant_dllm.models.network import Network
from quant_dllm.models.source import Source, open_model
from quant_dllm.packed import Packed
from quant_dllm.weights.base import WEIGHTS, QuantizedWeight
from quant_dllm.weights.fits import ORDERS, misfit

logger = logging.getLogger(__name__)


def load(
    model: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    mask_token_id: int | None = None,
    attention_block: int | None = None,
) -> DiffusionLM:
    """Load a model, 16-bit or packed, ready to call.

    The network is built on the meta device with a packed layer wherever the folder holds one, and
    each tensor goes from its file to its place: the 16-bit form of a packed model never exists.

    Args:
        model: A folder, ``"tiny"``, or a Hugging Face id.
        device: Where to put it.
        dtype: What to compute in; float32 on a CPU, bfloat16 elsewhere if not given.
        mask_token_id: The mask token, where the folder does not say.
        attention_block: See `open_model`.

    Raises:
        ModelError: Missing or damaged files, an architecture that we do not know.
        CheckpointError: A packed checkpoint of a later format, one that lacks tensors, or one whose
            packed tensors are not those that were written.
    """
    target = usable_device(device)
    opened = unloaded(model, mask_token_id=mask_token_id, attention_block=attention_block)
    return fill(opened, device=target, dtype=dtype)


def unloaded(
    model: str | Path, *, mask_token_id: int | None = None, attention_block: int | None = None
) -> DiffusionLM:
    """Open a model without its weights, which stay on the meta device.

    A request can be held against it, and refused, before anything large is read; `fill` does the
    rest.

    Args:
        model: A folder, ``"tiny"``, or a Hugging Face id.
        mask_token_id: The mask token, where the folder does not say.
        attention_block: See `open_model`.

    Raises:
        QuantDLLMError: What `load` raises, but for what only the weights can tell.
    """
    source = open_model(model, attention_block)
    backbone = empty_backbone(source)
    source.check(backbone)
    if mask_token_id is not None:
        mask_token_id = resolve_mask_token(source, mask_token_id, None)
    return DiffusionLM(source, backbone, mask_token_id).eval()


def fill(
    model: DiffusionLM,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
) -> DiffusionLM:
    """Read the weights of an `unloaded` model, each tensor from its file to its place.

    Args:
        model: The model; it is changed and returned.
        device: Where to put it.
        dtype: See `load`.

    Raises:
        CheckpointError: The packed tensors are not those that were written.
    """
    began, peak = time.monotonic(), PeakMemory()
    source, backbone = model.source, model.backbone
    target = local_device(usable_device(device))
    kind = dtype or default_dtype(target)
    packed = Fingerprint()
    for name in backbone.state_dict():
        tensor = source.tensor(name)
        if is_packed(backbone, name):
            packed.add(source.family.upstream(name), tensor)
        place(backbone, name, tensor, target, kind)
    check_fingerprint(source.folder, packed.digest())
    place_buffers(backbone, target)
    tensors = (*backbone.parameters(), *backbone.buffers())
    assert not any(tensor.is_meta for tensor in tensors), "every tensor was placed"
    for layer in backbone.modules():
        if isinstance(layer, QuantEmbedding):
            layer.dtype = kind
        if isinstance(layer, QuantLinear):
            layer.prepare(torch.empty(0, layer.in_features, dtype=kind, device=target))
    logger.info(
        "loaded %s: %.1f MB of weights in %.2f s, peak memory %.0f MB",
        source.name, source.folder.weight_bytes / 1e6, time.monotonic() - began,
        (peak.process or 0) / 1e6,
    )  # fmt: skip
    return model


def packed_weight(source: Source, slot: str, device: torch.device) -> QuantizedWeight:
    """Read the weight of one packed layer, alone, in the neutral layout."""
    layout = dict(source.packed_layers[slot])
    kind = WEIGHTS.get(layout.pop("kind"))
    tensors = {name: source.tensor(f"{slot}.{name}").to(device) for name in kind.names}
    return kind(**tensors, **layout)


def usable_device(device: str | torch.device) -> torch.device:
    """Check that there is such a device.

    Raises:
        RequestError: Unknown, or not on this machine.
    """
    try:
        found = torch.device(device)
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise RequestError(f"Device {str(device)!r} cannot be used: {reason}. Try cpu.") from None
    return found


def default_dtype(device: torch.device) -> torch.dtype:
    """Compute in float32 on a CPU and in bfloat16 elsewhere."""
    return torch.float32 if device.type == "cpu" else torch.bfloat16


def empty_backbone(source: Source) -> Network:
    """Build the network on the meta device, packed where the folder is packed."""
    backbone = source.empty()
    for slot, layout in source.packed_layers.items():
        plain = backbone.get_submodule(slot)
        layer = empty_layer(source.folder, source.upstream(slot), layout, plain)
        rows, *columns = getattr(layer, layer.kind.names[0]).shape
        found = (rows, layer.layout.get("in_features", *columns))
        wanted: Tensor = plain.weight  # type: ignore[assignment]
        if found != tuple(wanted.shape):
            raise CheckpointError(
                f"{source.upstream(slot)} of {source.folder.path} packs a weight of {list(found)}; "
                f"config.json wants {list(wanted.shape)}. Copy the folder again."
            )
        backbone.set_submodule(slot, layer)
    return backbone


def empty_layer(folder: Folder, upstream: str, layout: dict[str, Any], plain: nn.Module) -> Packed:
    """Make a packed layer or embedding on the meta device, shaped like what the folder holds of it.

    Args:
        folder: The packed checkpoint.
        upstream: Upstream's name of the layer.
        layout: What ``config.json`` says of it.
        plain: What stands there in the 16-bit network.

    Raises:
        CheckpointError: The folder lacks a tensor.
    """
    layout = dict(layout)
    kind = layout.pop("kind", None)
    if not isinstance(kind, str) or kind not in WEIGHTS.targets:
        raise CheckpointError(
            f"{folder.path} stores {upstream} as {kind!r}, which this quant-dllm does not read. "
            "Upgrade with: pip install -U quant-dllm"
        )
    names = {name: f"{upstream}.{name}" for name in WEIGHTS.get(kind).names}
    for name in names.values():
        if name not in folder.tensor_names:
            raise CheckpointError(
                f"{folder.path} lacks {name}: the checkpoint is incomplete. Copy it again."
            )
    shapes = {name: folder.shape(full) for name, full in names.items()}
    blocks = names.get(ORDERS.get(kind, ""))
    if blocks and len(shapes[ORDERS[kind]]) != 1:
        wrong = f"{ORDERS[kind]} of shape {list(shapes[ORDERS[kind]])}"
    else:
        orders = folder.tensor(blocks).tolist() if blocks else []
        wrong = misfit(kind, shapes, layout, orders)
    if kind == "simulated" and len(shapes["values"]) != 2:
        wrong = f"values of shape {list(shapes['values'])}"
    if wrong:
        raise CheckpointError(
            f"{upstream} of {folder.path} has {wrong}: its tensors do not belong together. "
            "Copy the folder again."
        )
    tensors = {
        name: torch.empty(shapes[name], dtype=folder.dtype(full), device="meta")
        for name, full in names.items()
    }
    described = {field.name for field in fields(WEIGHTS.get(kind))} - set(names)
    if set(layout) != described:
        raise CheckpointError(
            f"{folder.path} describes {upstream} by {', '.join(sorted(layout)) or 'nothing'}; a "
            f"{kind} weight is described by {', '.join(sorted(described))}. Copy the folder again."
        )
    with torch.device("meta"):
        if isinstance(plain, nn.Embedding):
            return QuantEmbedding(kind, tensors, layout, plain.weight.dtype)
        return QuantLinear(kind, tensors, layout, getattr(plain, "bias", None))


def place(
    network: nn.Module, name: str, tensor: Tensor, device: torch.device, dtype: torch.dtype
) -> None:
    """Put one tensor where it belongs.

    Floats take ``dtype``, but for those of packed layers and of routers: both stay what they are.
    """
    slot, _, leaf = name.rpartition(".")
    module = network.get_submodule(slot)
    kept = is_packed(network, name) or isinstance(module, Router)
    moved = tensor.to(device) if kept else tensor.to(device, dtype)
    setattr(module, leaf, nn.Parameter(moved, requires_grad=False))


def is_packed(network: nn.Module, name: str) -> bool:
    """Tell whether a tensor of a network is part of a packed weight."""
    slot, _, leaf = name.rpartition(".")
    module = network.get_submodule(slot)
    return isinstance(module, Packed) and leaf in module.kind.names


def check_fingerprint(folder: Folder, found: str) -> None:
    """Hold the packed tensors that were loaded against those that were written.

    Raises:
        CheckpointError: They are others.
    """
    wanted = (folder.quantization or {}).get("fingerprint")
    if wanted and wanted != found:
        raise CheckpointError(
            f"The packed tensors of {folder.path} have the fingerprint {found}; {wanted} was "
            "written. The files were changed or mixed up: copy the folder again."
        )


def place_buffers(network: nn.Module, device: torch.device) -> None:
    """Move what is computed and not stored, as wrapped networks have it."""
    for module in network.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))
