"""What transformers asks of a quantization method, for packed folders."""

from typing import Any

from torch import nn
from transformers.quantizers.auto import (
    AUTO_QUANTIZER_MAPPING,
    register_quantization_config,
    register_quantizer,
)
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from quant_dllm.checkpoint.folder import METHOD, Folder
from quant_dllm.errors import CheckpointError, RequestError
from quant_dllm.integrations.offload import read_as
from quant_dllm.linear import QuantLinear
from quant_dllm.models.load import empty_layer
from quant_dllm.models.source import locate


class QuantDLLMConfig(QuantizationConfigMixin):
    """``quantization_config`` of a packed folder.

    Attributes:
        format_version: Of the packed tensors.
        layers: Packed layers by upstream's name, with the layout of each.
        fingerprint: Of the packed tensors.
    """

    def __init__(
        self,
        format_version: int | None = None,
        layers: dict[str, dict[str, Any]] | None = None,
        fingerprint: str | None = None,
        **others: Any,
    ):
        self.quant_method: Any = METHOD
        self.format_version, self.layers = format_version, layers or {}
        self.fingerprint = fingerprint
        for name, value in others.items():
            if name != "quant_method":
                setattr(self, name, value)


class QuantDLLMQuantizer(HfQuantizer):
    """Puts packed layers where the folder has them; what is loaded is never changed."""

    requires_calibration = True
    quantization_config: Any

    def __init__(self, quantization_config: QuantizationConfigMixin, **kwargs: Any):
        if not kwargs.get("pre_quantized", True):
            raise RequestError(
                "quant-dllm calibrates on text before it packs, which loading a model does not do. "
                "Run quant-dllm quantize MODEL -o OUT, or quant_dllm.quantize(model, out), and "
                "load OUT."
            )
        super().__init__(quantization_config, **kwargs)

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        """Replace the linear layers that are packed."""
        folder = Folder(locate(model.config.name_or_path))
        folder.quantization  # noqa: B018  # refuses a later format
        for name, layout in self.quantization_config.layers.items():
            path = _path(model, name)
            if not _has(model, path):
                raise CheckpointError(
                    f"{folder.path} packs {name}, which this {type(model).__name__} does not have. "
                    "config.json and weights do not belong together: copy the folder again."
                )
            bias = getattr(model.get_submodule(path), "bias", None)
            model.set_submodule(path, empty_layer(folder, name, layout, bias))
            parent = model.get_submodule(path.rpartition(".")[0])
            parent._is_hf_initialized = True  # transformers 4 would fill its layers' `weight`

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        """Put back scales that were cast: transformers 4 casts all floats to the model's dtype."""
        folder = Folder(locate(model.config.name_or_path))
        for name in self.quantization_config.layers:
            layer = model.get_submodule(_path(model, name))
            assert isinstance(layer, QuantLinear), "it was replaced before loading"
            for leaf in layer.kind.names:
                wanted, found = folder.dtype(f"{name}.{leaf}"), getattr(layer, leaf)
                if found.is_meta:
                    read_as(layer, leaf, wanted)
                elif found.dtype != wanted:
                    tensor = folder.tensor(f"{name}.{leaf}").to(found.device)
                    setattr(layer, leaf, nn.Parameter(tensor, requires_grad=False))

    def param_needs_quantization(self, model: nn.Module, param_name: str, **kwargs: Any) -> bool:
        """Say that nothing is packed while it is loaded."""
        return False

    def is_serializable(self, safe_serialization: Any = None) -> Any:
        """Say that the model can be saved as it is."""
        return True

    @property
    def is_trainable(self) -> Any:
        """Say that packed weights are not trained."""
        return False


def _path(model: nn.Module, name: str) -> str:
    """Return where a layer is in a model that may have been asked for without its head."""
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    return name if _has(model, name) else name.removeprefix(prefix)


def _has(model: nn.Module, path: str) -> bool:
    try:
        return isinstance(model.get_submodule(path), nn.Module)
    except AttributeError:
        return False


def register() -> None:
    """Register both; a second time changes nothing."""
    if METHOD not in AUTO_QUANTIZER_MAPPING:
        register_quantization_config(METHOD)(QuantDLLMConfig)
        register_quantizer(METHOD)(QuantDLLMQuantizer)
