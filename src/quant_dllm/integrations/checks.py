"""What must hold of every model that transformers has loaded; otherwise an error, not a guess."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from quant_dllm.checkpoint.fingerprint import Fingerprint
from quant_dllm.errors import CheckpointError, ModelError
from quant_dllm.packed import Packed

IGNORED = ("rotary_emb.inv_freq",)  # tables that older versions stored


def check(model: nn.Module, info: dict[str, Any], name: str) -> None:
    """Check a model that was just loaded.

    Args:
        model: It.
        info: What transformers reports of the loading.
        name: How the model was asked for.

    Raises:
        ModelError: A tensor is missing, of another shape, or was never filled.
        CheckpointError: The packed tensors are not those that were written.
    """
    for problem in ("missing_keys", "mismatched_keys"):
        found = sorted(str(key) for key in info.get(problem) or () if not _ignored(key))
        if found:
            raise ModelError(
                f"{name} has {problem.replace('_', ' ')}: {', '.join(found[:3])}"
                f"{' …' if len(found) > 3 else ''}. The weights would be random: copy or download "
                "the folder again."
            )
    empty = [n for n, tensor in _tensors(model) if tensor.is_meta and not _offloaded(model, n)]
    if empty:
        raise ModelError(f"{name}: {empty[0]} was never filled. Report this as a bug.")
    _check_fingerprint(model, name)


def _ignored(key: Any) -> bool:
    return str(key).endswith(IGNORED)


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _offloaded(model: nn.Module, name: str) -> bool:
    """Tell whether a tensor is elsewhere until its module is called."""
    module = model.get_submodule(name.rpartition(".")[0])
    return bool(getattr(getattr(module, "_hf_hook", None), "offload", False))


def _check_fingerprint(model: nn.Module, name: str) -> None:
    wanted = getattr(getattr(model, "hf_quantizer", None), "quantization_config", None)
    wanted = getattr(wanted, "fingerprint", None)
    if not wanted:
        return
    found, prefix = Fingerprint(), _prefix(model)
    for path, layer in model.named_modules():
        if isinstance(layer, Packed):
            for leaf in layer.kind.names:
                tensor = getattr(layer, leaf)
                if tensor.is_meta:
                    return  # some are on a disk: they are read when they are wanted
                found.add(f"{prefix}{path}.{leaf}", tensor)
    if found.digest() != wanted:
        raise CheckpointError(
            f"The packed tensors of {name} have the fingerprint {found.digest()}; {wanted} was "
            "written. The files were changed or mixed up: copy the folder again."
        )


def _prefix(model: nn.Module) -> str:
    """Return what stands before the names of a model that was loaded without its head."""
    quantizer: Any = model.hf_quantizer
    layers: dict[str, Any] = quantizer.quantization_config.layers
    first = next((p for p, m in model.named_modules() if isinstance(m, Packed)), "")
    return "" if first in layers else f"{getattr(model, 'base_model_prefix', '')}."
