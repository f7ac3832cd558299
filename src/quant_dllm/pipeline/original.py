"""The 16-bit model as it is streamed: what is outside the blocks, and one block at a time."""

import copy

import torch
from torch import nn

from quant_dllm.models.load import place, place_buffers
from quant_dllm.models.network import Network
from quant_dllm.models.source import Source


def read_outside(source: Source, device: torch.device, dtype: torch.dtype) -> Network:
    """Read embedding, norm and head; the blocks stay on the meta device."""
    network = source.empty()
    for name in source.outside_blocks():
        place(network, name, source.tensor(name), device, dtype)
    place_buffers(network, device)
    return network


def read_block(
    source: Source, index: int, empty: nn.Module, device: torch.device, dtype: torch.dtype
) -> nn.Module:
    """Read one block.

    Args:
        source: The 16-bit model.
        index: Number of the block.
        empty: Its modules, on the meta device; they stay as they are.
        device: Where to compute.
        dtype: In what.
    """
    block = copy.deepcopy(empty).eval()
    for name in block.state_dict():
        place(block, name, source.tensor(f"blocks.{index}.{name}"), device, dtype)
    place_buffers(block, device)
    return block
