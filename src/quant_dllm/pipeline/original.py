"""The 16-bit model as it is streamed: what is outside the blocks, and one block at a time."""

import copy

import torch
from torch import nn

from quant_dllm.models.load import place, place_buffers
from quant_dllm.models.network import Network
from quant_dllm.models.source import Source


def read_outside(
    source: Source, device: torch.device, dtype: torch.dtype, scores_only: bool = False
) -> Network:
    """Read embedding, norm and head; the blocks stay on the meta device.

    Args:
        source: The 16-bit model.
        device: Where to compute.
        dtype: In what.
        scores_only: Leave the embedding where it is, unless it is the head too.
    """
    network = source.empty()
    for name in source.outside_blocks():
        if not scores_only or network.copies or not name.startswith("embed."):
            place(network, name, source.tensor(name), device, dtype)
    place_buffers(network, device)
    source.folder.close()
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
    source.folder.close()
    return block
