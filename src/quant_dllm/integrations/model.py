"""Every family as a class of transformers, around the network of this package."""

import json
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import MaskedLMOutput

from quant_dllm.checkpoint.shim import SHIM, with_shim
from quant_dllm.errors import RequestError
from quant_dllm.integrations.checks import check
from quant_dllm.integrations.mirror import mirror, replace
from quant_dllm.integrations.offload import keep_routers
from quant_dllm.models.experts import Router
from quant_dllm.models.family import ModelFamily


class Checked:
    """Loads like any class of transformers, but raises where that one warns."""

    @classmethod
    def from_pretrained(cls, name: Any, *args: Any, **kwargs: Any) -> Any:
        """Load a model; see `checks.check` for what is raised."""
        wanted = kwargs.pop("output_loading_info", False)
        loader: Any = super()
        model, info = loader.from_pretrained(name, *args, output_loading_info=True, **kwargs)
        keep_routers(model)
        check(model, info, str(name))
        return (model, info) if wanted else model

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Save the model, and the shim beside it if it is packed."""
        saver: Any = super()
        saver.save_pretrained(save_directory, *args, **kwargs)
        path = Path(save_directory) / "config.json"
        raw = json.loads(path.read_text())
        if raw.get("quantization_config"):
            raw, shim = with_shim(raw)
            path.write_text(json.dumps(raw, indent=2) + "\n")
            path.with_name(SHIM).write_bytes(shim)


class DenoiserModel(Checked, PreTrainedModel):
    """A masked diffusion language model: token ids in, logits for every position out.

    The rows of the logits are upstream's: a shifted family reads position i from row i − 1.
    """

    family: ModelFamily
    base_model_prefix = ""
    _no_split_modules = ["MirrorBlock"]  # noqa: RUF012  # transformers' own way
    _keys_to_ignore_on_load_unexpected = [  # noqa: RUF012
        r".*rotary_emb\.inv_freq",  # a table that older versions stored
        r"lm_head\.weight",  # a copy of the embedding, in some folders of models that tie the two
    ]

    def __init__(self, config: PretrainedConfig):
        super().__init__(config)
        raw = config.to_dict()
        self._network = (self.family.build(self.family.config(raw), raw),)  # hangs in `mirror`
        self._slots = mirror(self, self.network, self.family)
        self.post_init()
        routers = {path for path, m in self.named_modules() if isinstance(m, Router)}
        self._keep_in_fp32_modules_strict = routers or None  # whole paths, which 4.57 would refuse

    @property
    def network(self) -> Any:
        """Return the network, which this class hangs under upstream's names."""
        return self._network[0]

    def forward(
        self,
        input_ids: Int[Tensor, "batch length"],
        attention_mask: Tensor | None = None,
        **_: Any,
    ) -> MaskedLMOutput:
        """Score every token at every position.

        Raises:
            RequestError: ``attention_mask`` hides something: sequences of one length are wanted.
        """
        if attention_mask is not None and not bool(attention_mask.bool().all()):
            raise RequestError(
                "attention_mask hides positions; a masked diffusion model fills its whole canvas. "
                "Pass sequences of one length, without padding."
            )
        logits: Float[Tensor, "batch length vocab"] = self.network(input_ids)
        return MaskedLMOutput(logits=logits)  # type: ignore[arg-type]

    def set_submodule(self, target: str, module: nn.Module, *args: Any, **kwargs: Any) -> None:
        """Replace a module under upstream's name, and in the network."""
        super().set_submodule(target, module, *args, **kwargs)
        if target in self._slots:
            replace(self.network, self._slots[target], module)

    def get_input_embeddings(self) -> nn.Module:
        """Return the embedding."""
        return self.network.embed

    def get_output_embeddings(self) -> nn.Module | None:
        """Return the head; ``None`` where it is the embedding."""
        return getattr(self.network, "head", None)

    def _init_weights(self, module: nn.Module) -> None:
        """Draw weights as Llama does; of a loaded model none are left to draw."""
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.is_floating_point() or parameter.is_meta:
                continue
            if parameter.ndim > 1:
                parameter.data.normal_(0.0, 0.02)
            else:
                parameter.data.fill_(0.0 if name.endswith("bias") else 1.0)

    @classmethod
    def _from_config(cls, config: PretrainedConfig, **kwargs: Any) -> "DenoiserModel":
        """Make a model of random weights."""
        model = cls(config)
        model.to_empty(device="cpu")
        model.apply(model._init_weights)
        dtype = kwargs.get("dtype") or kwargs.get("torch_dtype")
        return model.to(dtype=dtype) if isinstance(dtype, torch.dtype) else model  # type: ignore[call-arg]
