"""Tensors that stay on a disk are read as what they are, whatever the model computes in."""

import torch
from torch import nn

from quant_dllm.models.experts import Router


def read_as(module: nn.Module, leaf: str, dtype: torch.dtype) -> None:
    """Have a tensor of a module that is offloaded to a disk read in a type of its own."""
    files = getattr(getattr(module, "_hf_hook", None), "weights_map", None)
    index = getattr(getattr(files, "dataset", None), "index", None)
    entry = index.get(f"{files.prefix}{leaf}") if index and files is not None else None
    if entry and "dtype" in entry:
        entry["dtype"] = str(dtype).removeprefix("torch.")


def keep_routers(model: nn.Module) -> None:
    """Have routers that are offloaded read in float32, as those in memory are kept."""
    for module in model.modules():
        if isinstance(module, Router):
            for leaf, parameter in module.named_parameters(recurse=False):
                if parameter.is_meta:
                    read_as(module, leaf, torch.float32)
