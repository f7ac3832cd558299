"""Rounding of one row of a group in plain Python, for oracles."""

import torch


def levels(low, high, bits):
    """Return the levels of one row from ``low`` to ``high``, zero being one of them."""
    top = 2**bits - 1
    scale = float(torch.tensor((high - low) / top).half()) or 1.0
    zero = min(max(round(-low / scale), 0), top)
    return [scale * (c - zero) for c in range(top + 1)]


def nearest(row, candidates):
    """Return the nearest candidate to each number."""
    return [min(candidates, key=lambda level: abs(level - w)) for w in row]


def sides(row):
    """Return the levels of one bit: a mean distance on each side of the mean."""
    mean = sum(row) / len(row)
    apart = sum(abs(w - mean) for w in row) / len(row)
    return [mean - apart, mean + apart]


def rounded_by_rows(block, bits):
    """Round each row of a block to its own levels, from its minimum to its maximum."""
    rows = [nearest(row, levels(min(*row, 0), max(*row, 0), bits)) for row in block.tolist()]
    return torch.tensor(rows).double()
