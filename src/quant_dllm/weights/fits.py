"""Whether the stored tensors of a packed weight belong together, told from their shapes alone.

A checkpoint is somebody's file: its shapes are held against its layout before anything is allocated
or a kernel reads a byte of it.
"""

from collections.abc import Sequence
from typing import Any

from quant_dllm.weights.packing import packed_width, places

Shapes = dict[str, tuple[int, ...]]
ORDERS = {
    "binary": "orders", "compact": "orders", "uniform": "bits", "affine": "bits", "finer": "marks",
}  # fmt: skip
"""The tensor that tells the planes of each block, or marks the finer rows, by kind of weight."""
GROUPS = {"grouped": (4, 8), "finer": (4,)}
"""Bits that a code may have, by kind of weight."""
MOST_PLANES, MOST_SCALE_BITS = 16, 8


def misfit(kind: str, shapes: Shapes, layout: dict[str, Any], orders: Sequence[int]) -> str | None:
    """Say what does not belong together, or nothing.

    Args:
        kind: Of the weight, see `weights.base.WEIGHTS`; a kind that is one tensor always fits.
        shapes: Of its tensors, by name.
        layout: What ``config.json`` says of it.
        orders: Planes of each block, or marks of finer rows, as they are stored.
    """
    if kind not in ORDERS.keys() | GROUPS.keys():
        return None
    size, inputs = layout.get("block_size"), layout.get("in_features")
    if not _is_count(size) or not _is_count(inputs):
        return f"blocks of {size!r} of {inputs!r} input channels"
    assert isinstance(size, int) and isinstance(inputs, int)
    if kind in GROUPS:
        return _misfit_groups(kind, shapes, layout.get("bits"), size, inputs, orders)
    if len(orders) != -(-inputs // size) or not all(0 < k <= MOST_PLANES for k in orders):
        return f"{len(orders)} blocks of {size} for {inputs} input channels"
    out = shapes["planes"][0] if shapes["planes"] else 0
    bits = layout.get("scale_bits")
    if kind == "compact" and not (_is_count(bits) and int(bits or 0) <= MOST_SCALE_BITS):
        return f"scales of {bits!r} bits"
    for name, wanted in _wanted(kind, out, size, inputs, orders, bits).items():
        if name in shapes and shapes[name] != wanted:
            return f"{name} of shape {list(shapes[name])} where {list(wanted)} is wanted"
    return None


def _misfit_groups(
    kind: str, shapes: Shapes, bits: Any, size: int, inputs: int, marks: Sequence[int]
) -> str | None:
    """Hold codes and scales of a grouped weight against each other."""
    if bits not in GROUPS[kind]:
        return f"codes of {bits!r} bits"
    out = shapes["codes"][0] if shapes["codes"] else 0
    wanted = {"codes": (out, -(-inputs * bits // 8)), "scales": (out, -(-inputs // size))}
    if kind == "finer":
        count, last = sum(map(int.bit_count, marks)), marks[-1] if marks else 0
        if not count or len(marks) != packed_width(out) or last >> (out % 8 or 8):
            return f"{len(marks)} bytes that mark {count} of {out} rows"
        wanted["below"] = (count, wanted["codes"][1])
    for name, shape in wanted.items():
        if shapes[name] != shape:
            return f"{name} of shape {list(shapes[name])} where {list(shape)} is wanted"
    return None


def _wanted(
    kind: str, out: int, size: int, inputs: int, orders: Sequence[int], scale_bits: Any
) -> Shapes:
    """Return the shapes that the docs of the format give."""
    found = list(places(inputs, size, orders))
    planes = sum(place.order for place in found)
    width = sum(place.order * packed_width(place.width) for place in found)
    shapes: Shapes = {"planes": (out, width)}
    columns = sum(place.order * place.width for place in found)
    if kind == "compact":
        return shapes | {
            "row_codes": (planes * scale_bits, packed_width(out)),
            "column_codes": (scale_bits, packed_width(columns)),
            "row_grids": (2, planes),
            "column_grids": (2, planes),
        }
    if kind == "binary":
        return shapes | {"row_scales": (out, planes), "column_scales": (columns,)}
    zero = (planes, packed_width(out)) if kind == "uniform" else (out, len(orders))
    return shapes | {"scales": (out, len(orders)), "zero_points": zero}


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
