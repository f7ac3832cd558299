"""Make transformers' auto classes know every family."""

from functools import cache
from typing import Any

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    PretrainedConfig,
)

from quant_dllm.integrations import configs, quantizer
from quant_dllm.integrations.configs import WRAPPED, config_class, model_types
from quant_dllm.integrations.model import Checked, DenoiserModel
from quant_dllm.models.source import FAMILIES, recognise


@cache
def family_class(config: type[PretrainedConfig], family: str) -> type[DenoiserModel]:
    """Make the class of one family, under the name that upstream has for it."""
    value = FAMILIES.get(family)
    body = {"config_class": config, "family": value, "__module__": __name__}
    return type(value.architectures[0], (DenoiserModel,), body)


class Dispatching:
    """Stands for all families of one model type, and loads the class of the right one."""

    config_class: type[PretrainedConfig]
    _auto_class = None

    @classmethod
    def _family_class(cls, config: PretrainedConfig) -> Any:
        if cls.config_class is config_class(WRAPPED):
            return wrapped_class(cls.config_class)
        family = recognise(config.to_dict(), config.name_or_path or "This configuration")
        return family_class(cls.config_class, family.name)

    @classmethod
    def from_pretrained(cls, name: Any, *args: Any, config: Any = None, **kwargs: Any) -> Any:
        """Load a model; see `checks.check` for what is raised."""
        config = config or AutoConfig.from_pretrained(name)
        return cls._family_class(config).from_pretrained(name, *args, config=config, **kwargs)

    @classmethod
    def _from_config(cls, config: PretrainedConfig, **kwargs: Any) -> Any:
        return cls._family_class(config)._from_config(config, **kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoModel") -> None:
        """Do nothing: what is saved names the shim already."""


@cache
def wrapped_class(config: type[PretrainedConfig]) -> Any:
    """Make the class of models that are transformers' own."""
    from transformers import ModernBertForMaskedLM

    body = {"config_class": config, "__module__": __name__}
    return type("ModernBertForMaskedLM", (Checked, ModernBertForMaskedLM), body)


@cache
def model_class(model_type: str) -> type:
    """Make the class that the auto classes know for a model type.

    It imports no model of transformers: of those, one may be on its way in when we register.
    """
    config = config_class(model_type)
    return type(f"{config.__name__}Dispatching", (Dispatching,), {"config_class": config})


def classes(model_type: str) -> tuple[type[PretrainedConfig], type]:
    """Return configuration and model of a model type, for the shim in packed folders."""
    register()
    return config_class(model_type), model_class(model_type)


def register() -> None:
    """Register everything; a second time changes nothing."""
    configs.register(wrapped=True)
    quantizer.register()
    for model_type in model_types():
        config, model = config_class(model_type), model_class(model_type)
        for auto in (AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM):
            auto.register(config, model, exist_ok=True)
