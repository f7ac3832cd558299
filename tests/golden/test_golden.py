"""Checkpoints of every format version that was ever released must load, for ever."""

import shutil

import pytest
import torch
from safetensors.torch import load_file

import quant_dllm
from quant_dllm.checkpoint.folder import FORMAT_VERSION
from tests.conftest import GOLDEN

CHECKPOINTS = sorted(folder.name for folder in GOLDEN.glob("v*-*"))


def test_every_version_has_a_golden_checkpoint():
    versions = {int(name.split("-")[0][1:]) for name in CHECKPOINTS}
    assert versions == set(range(1, FORMAT_VERSION + 1))


@pytest.fixture(params=CHECKPOINTS)
def golden(request, tmp_path):
    folder = shutil.copytree(GOLDEN / request.param, tmp_path / "golden")
    expected = load_file(folder / "golden.safetensors")
    (folder / "golden.safetensors").unlink()
    return folder, expected


def test_it_loads_and_answers_as_it_did(golden):
    folder, expected = golden
    logits = quant_dllm.load(folder)(expected["input_ids"]).logits
    assert (logits - expected["logits"]).abs().max() <= 1e-4  # fp32, another machine's sums


def test_it_holds_what_the_format_can_hold(golden):
    folder, _ = golden
    layers = [layer.weight for layer in quant_dllm.load(folder).packed()]
    assert len(layers) == 7
    orders = {
        order for w in layers for order in getattr(w, "orders", getattr(w, "bits", None)).tolist()
    }
    assert orders == {1, 2, 3}
    assert all(w.code_bits == 2.0 for w in layers)
    assert sum(f.stat().st_size for f in folder.iterdir()) < 45_000


def scales(np, tensors, plane, columns):
    """Return the row and the column scales of a plane, by docs/format.md alone."""
    if "row_scales" in tensors:
        a, c = tensors["row_scales"][:, plane], tensors["column_scales"][columns]
        return a.astype(np.float32), c.astype(np.float32)
    bits = len(tensors["column_codes"])

    def decode(packed, grid, channels):
        codes = [sum((row[i // 8] >> (i % 8) & 1) << k for k, row in enumerate(packed))
                 for i in channels]  # fmt: skip
        low, step = grid[:, plane].astype(np.float32)
        roots = low + step * np.array(codes, np.float32)
        return (roots * roots).astype(np.float16).astype(np.float32)

    mine = tensors["row_codes"][plane * bits : (plane + 1) * bits]
    channels = range(columns.start, columns.stop)
    return (
        decode(mine, tensors["row_grids"], range(24)),
        decode(tensors["column_codes"], tensors["column_grids"], channels),
    )


def nibbles(row):
    """Take the codes of four bits of a row apart."""
    return [int(row[j // 2]) >> 4 * (j % 2) & 15 for j in range(24)]


def test_its_embedding_is_that_of_the_documented_layout(golden):
    import numpy as np

    folder, _ = golden
    stored = load_file(folder / "model.safetensors")
    if "model.transformer.wte.codes" not in stored:
        pytest.skip("its embedding is not packed")
    embed = quant_dllm.load(folder).backbone.embed
    for name, ours in (("wte", embed(torch.arange(64))), ("ff_out", None)):
        codes, s = (
            stored[f"model.transformer.{name}.{leaf}"].numpy() for leaf in ("codes", "scales")
        )
        values = np.array([nibbles(row) for row in codes]) - 8.0
        marks = stored.get(f"model.transformer.{name}.marks")
        if marks is not None:
            finer = [i for i in range(64) if int(marks[i // 8]) >> (i % 8) & 1]
            below = stored[f"model.transformer.{name}.below"].numpy()
            assert len(finer) == len(below) == 6 and 63 in finer  # the mask is one of a tenth
            values[finer] += np.array([nibbles(row) for row in below]) / 16
        values = values * s.astype(np.float32)[:, [j // 10 for j in range(24)]]
        if ours is None:
            ours = quant_dllm.load(folder).backbone.head.weight.dequantize()
        assert torch.allclose(ours, torch.from_numpy(values).float(), atol=1e-6)


def test_its_bytes_are_those_of_the_documented_layout(golden):
    """Dequantize one weight by docs/format.md alone: numpy, loops, nothing of ours."""
    import numpy as np

    folder, _ = golden
    name = "model.transformer.blocks.0.ff_out"
    stored = load_file(folder / "model.safetensors").items()
    tensors = {k.rpartition(".")[2]: v.numpy() for k, v in stored if k.startswith(name + ".")}
    size, width = 8, 40
    orders = tensors.get("orders", tensors.get("bits"))
    values = np.zeros((24, width), np.float32)
    byte = plane = column = 0
    for b, order in enumerate(orders):
        w = min(size, width - b * size)
        code = np.zeros((24, w))
        for k in range(order):
            rows = tensors["planes"][:, byte : byte + -(-w // 8)]
            bit = np.stack([rows[:, j // 8] >> (j % 8) & 1 for j in range(w)], axis=1)
            if "orders" in tensors:
                a, c = scales(np, tensors, plane, slice(column, column + w))
                values[:, b * size : b * size + w] += np.outer(a, c) * np.where(bit, 1, -1)
                column += w
            else:
                z = tensors["zero_points"][plane]
                zero = np.array([z[i // 8] >> (i % 8) & 1 for i in range(24)])
                code += (bit - zero[:, None].astype(float)) * 2**k
            byte, plane = byte + -(-w // 8), plane + 1
        if "scales" in tensors:
            scale = tensors["scales"][:, b].astype(np.float32)
            values[:, b * size : b * size + w] = scale[:, None] * code
    model = quant_dllm.load(folder)
    ours = model.backbone.blocks[0].mlp.down.weight.dequantize()
    assert torch.allclose(ours, torch.from_numpy(values), atol=1e-6)
