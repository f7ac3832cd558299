"""Random packed weights of any shape and orders."""

import torch

from quant_dllm.weights.binary import BinaryWeight, Planes


def random_weight(
    out: int, inputs: int, block_size: int, orders: list[int], seed: int = 0
) -> BinaryWeight:
    """Draw signs and scales; each plane is about half as large as the one before."""
    dice = torch.Generator().manual_seed(seed)
    blocks = []
    for b, order in enumerate(orders):
        width = min(block_size, inputs - b * block_size)
        shrink = 0.5 ** torch.arange(order)[:, None]
        blocks.append(
            Planes(
                signs=torch.rand(order, out, width, generator=dice) < 0.5,
                rows=(torch.rand(order, out, generator=dice) + 0.5) * shrink * 0.02,
                columns=torch.rand(order, width, generator=dice) + 0.5,
            )
        )
    return BinaryWeight.of(blocks, block_size)
