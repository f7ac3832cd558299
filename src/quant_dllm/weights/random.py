"""Random packed weights: what a kernel is timed and tested on, of any shape and orders."""

from collections.abc import Sequence

import torch

from quant_dllm.weights.binary import BinaryWeight
from quant_dllm.weights.packing import packed_width, places


def random_weight(
    out: int, inputs: int, block_size: int, orders: Sequence[int], seed: int = 0
) -> BinaryWeight:
    """Draw signs and scales; each plane is half as large as the one before.

    Args:
        out: Output channels.
        inputs: Input channels.
        block_size: Input channels of a block.
        orders: Planes of each block.
        seed: Equal seeds give equal weights.
    """
    dice = torch.Generator().manual_seed(seed)
    planes, shrink, columns = [], [], []
    for place in places(inputs, block_size, orders):
        for plane in range(place.order):
            width = packed_width(place.width)
            data = torch.randint(256, (out, width), dtype=torch.uint8, generator=dice)
            data[:, -1] &= 255 >> (-place.width % 8)  # rows end in zero bits
            planes.append(data)
            shrink.append(0.5**plane)
            columns.append(torch.rand(place.width, generator=dice) + 0.5)
    rows = (torch.rand(out, len(planes), generator=dice) + 0.5) * torch.tensor(shrink)
    return BinaryWeight(
        planes=torch.cat(planes, dim=1),
        row_scales=(0.02 * rows).half(),
        column_scales=torch.cat(columns).half(),
        orders=torch.tensor(orders, dtype=torch.uint8),
        block_size=block_size,
        in_features=inputs,
    )
