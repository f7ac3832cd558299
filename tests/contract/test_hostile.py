"""Somebody else's files: broken ones are refused in one line, and nothing large is allocated."""

import json
import os
import shutil
import struct
from itertools import chain
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import quant_dllm
from quant_dllm.errors import CheckpointError, ModelError, QuantDLLMError
from quant_dllm.kernels import compile as compiler
from quant_dllm.kernels.compile import CompileError
from quant_dllm.weights.base import WEIGHTS
from quant_dllm.weights.fits import misfit
from quant_dllm.weights.random import random_weight
from tests.conftest import GOLDEN

FUZZ = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def attempt(folder: Path) -> None:
    """Load a folder; nothing but our own errors may come out, each of one line."""
    try:
        quant_dllm.load(folder)
    except QuantDLLMError as error:
        assert len(str(error).splitlines()) == 1, str(error)


@pytest.fixture
def golden(tmp_path):
    return Path(shutil.copytree(GOLDEN / "v1-binary", tmp_path / "golden"))


def header(data: bytes) -> dict:
    (size,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + size])


def with_header(data: bytes, changed: dict | bytes, size: int | None = None) -> bytes:
    (old,) = struct.unpack("<Q", data[:8])
    text = changed if isinstance(changed, bytes) else json.dumps(changed).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + data[8 + old :]


@FUZZ
@given(st.data())
def test_flipped_cut_and_inserted_bytes(golden, data):
    path = golden / data.draw(st.sampled_from(["model.safetensors", "config.json"]))
    whole = (GOLDEN / "v1-binary" / path.name).read_bytes()
    at = data.draw(st.integers(0, min(len(whole), 4000) - 1))
    kind = data.draw(st.sampled_from(["flip", "cut", "insert"]))
    if kind == "flip":
        spoilt = whole[:at] + bytes([whole[at] ^ data.draw(st.integers(1, 255))]) + whole[at + 1 :]
    elif kind == "cut":
        spoilt = whole[:at]
    else:
        spoilt = whole[:at] + data.draw(st.binary(min_size=1, max_size=9)) + whole[at:]
    path.write_bytes(spoilt)
    attempt(golden)
    path.write_bytes(whole)


VALUES = st.one_of(
    st.integers(-(2**70), 2**70), st.floats(), st.booleans(), st.none(), st.text(max_size=5),
    st.lists(st.integers(), max_size=2), st.dictionaries(st.text(max_size=3), st.integers()),
)  # fmt: skip


@FUZZ
@given(st.data())
def test_numbers_and_types_of_the_configuration(golden, data):
    path = golden / "config.json"
    config = json.loads((GOLDEN / "v1-binary" / "config.json").read_text())
    where = data.draw(st.sampled_from(["model", "quantization", "layer"]))
    part = config
    if where != "model":
        part = config["quantization_config"]
    if where == "layer":
        part = part["layers"][data.draw(st.sampled_from(sorted(part["layers"])))]
    part[data.draw(st.sampled_from(sorted(part)))] = data.draw(VALUES)
    path.write_text(json.dumps(config))
    attempt(golden)


@FUZZ
@given(st.data())
def test_headers_that_lie(golden, data):
    path = golden / "model.safetensors"
    whole = (GOLDEN / "v1-binary" / path.name).read_bytes()
    found = header(whole)
    name = data.draw(st.sampled_from(sorted(k for k in found if k != "__metadata__")))
    field = data.draw(st.sampled_from(["dtype", "shape", "data_offsets", "size"]))
    numbers = st.lists(st.integers(-1, 2**64), max_size=3)
    size = None
    if field == "size":
        size = data.draw(st.integers(0, 2**64 - 1))
    elif field == "dtype":
        found[name]["dtype"] = data.draw(st.sampled_from(["I64", "BOOL", "F64", "F8_E4M3", "x"]))
    else:
        found[name][field] = data.draw(numbers)
    path.write_bytes(with_header(whole, found, size))
    attempt(golden)


@pytest.mark.parametrize(
    "name", ["../secret.safetensors", "/etc/passwd", "a/b.safetensors", "..", "x.bin", "", 7, None]
)
def test_an_index_that_leaves_the_folder(golden, name):
    (golden.parent / "secret.safetensors").write_bytes((golden / "model.safetensors").read_bytes())
    index = {"weight_map": {"model.transformer.wte.weight": name}}
    (golden / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="in the same folder is wanted"):
        quant_dllm.load(golden)


def test_json_that_is_nested_without_end(golden):
    (golden / "config.json").write_text("[" * 200_000)
    with pytest.raises(ModelError, match="cannot be read"):
        quant_dllm.load(golden)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_layers": 10**9}, "blocks 1000000000"),
        ({"d_model": 10**12}, "width 1000000000000"),
        ({"n_heads": 0}, "cannot have"),
        ({"n_heads": "2"}, "cannot have"),
        ({"embedding_size": -4}, "vocab -4"),
        ({"rope_theta": float("nan")}, "rope_theta nan"),
    ],
)
def test_numbers_that_no_network_has(golden, changes, message):
    path = golden / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ModelError, match=message):
        quant_dllm.load(golden)


def test_packed_tensors_that_do_not_belong_together(golden):
    path = golden / "model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith(".orders"))
    save_file(tensors | {name: tensors[name] + 200}, path)
    with pytest.raises(CheckpointError, match="do not belong together"):
        quant_dllm.load(golden)
    planes = name.replace("orders", "planes")
    save_file(tensors | {planes: torch.zeros(1, 1, dtype=torch.uint8)}, path)
    with pytest.raises(CheckpointError, match="do not belong together"):
        quant_dllm.load(golden)


@pytest.mark.parametrize("kind", ["binary", "uniform", "affine"])
def test_what_quantizers_write_fits(kind):
    from quant_dllm.recipe import Recipe
    from tests.conftest import correlated_layer

    recipe = {"binary": "ladder-1-rounding", "uniform": "gptq-2bit", "affine": "hqq-2bit"}[kind]
    _, precision, quantizer, *_ = Recipe.load(recipe).override({"precision.block_size": 20}).build()
    weight, _, stats = correlated_layer(24, 72)
    made = quantizer.quantize(weight, stats, precision.allocate(weight, stats), 20)
    assert made.kind == kind and kind in WEIGHTS.targets
    shapes = {name: tuple(tensor.shape) for name, tensor in made.tensors().items()}
    orders = made.tensors()["orders" if kind == "binary" else "bits"].tolist()
    assert misfit(kind, shapes, made.layout(), orders) is None
    for name in shapes:
        if name not in ("orders", "bits"):
            wrong = shapes | {name: (*shapes[name][:-1], shapes[name][-1] + 1)}
            assert name in misfit(kind, wrong, made.layout(), orders)
    assert misfit(kind, shapes, made.layout() | {"block_size": 0}, orders)
    assert misfit(kind, shapes, made.layout() | {"in_features": 10**30}, orders)
    assert random_weight(8, 32, 16, [2, 2])


def test_a_library_of_somebody_else_is_not_run(tmp_path, monkeypatch):
    monkeypatch.setattr(compiler, "find_compiler", lambda: "true")
    monkeypatch.setattr(compiler, "build", lambda path, _: path.write_bytes(b"ours"))
    cache = tmp_path / "cache"
    cache.mkdir(mode=0o700)
    monkeypatch.setenv("QUANT_DLLM_CACHE", str(cache))
    path = compiler.made()
    assert path.stat().st_mode & 0o077 == 0
    path.write_bytes(b"theirs")
    assert compiler.made().read_bytes() == b"ours"  # its checksum told; it was made again
    path.chmod(0o722)
    with pytest.raises(CompileError, match="can be changed by others"):
        compiler.made()
    path.chmod(0o700)
    cache.chmod(0o777)
    with pytest.raises(CompileError, match="can be changed by others"):
        compiler.made()
    cache.chmod(0o700)
    monkeypatch.setattr(os, "getuid", lambda: 4321)
    with pytest.raises(CompileError, match="is another user's"):
        compiler.made()
    monkeypatch.undo()
    (tmp_path / "link").symlink_to(cache)
    with pytest.raises(CompileError, match="is a link"):
        compiler.refuse_strangers(tmp_path / "link")


def test_no_pickle_anywhere():
    benchmarks = Path(__file__).parents[2] / "benchmarks"
    for file in chain(Path(quant_dllm.__file__).parent.rglob("*.py"), benchmarks.glob("*.py")):
        text = file.read_text()
        for word in ("import pickle", "torch.save", "torch.load(", "object_list", "gather_object"):
            assert word not in text, (file, word)


def test_a_pickle_is_named_and_left_unread(golden):
    (golden / "model.safetensors").unlink()
    torch.save({"a": torch.ones(1)}, golden / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin is a pickle.*convert it"):
        quant_dllm.load(golden)
