"""Every family's example checkpoint, loaded, and quantized, once for all contracts."""

import random

import pytest

import quant_dllm
from quant_dllm.models.family import ModelFamily
from quant_dllm.models.load import load
from quant_dllm.models.source import FAMILIES
from tests.families import EXAMPLES, LENGTH

SMALL = {"calibration.sequences": 8, "calibration.length": LENGTH, "precision.block_size": 16}


@pytest.fixture(scope="session", params=sorted(FAMILIES.targets))
def family(request) -> ModelFamily:
    return FAMILIES.get(request.param)


@pytest.fixture(scope="session")
def example(family, tmp_path_factory):
    return EXAMPLES[family.name](tmp_path_factory.mktemp(family.name) / "model", family)


@pytest.fixture(scope="session")
def model(example):
    return load(example.folder, attention_block=example.attention_block)


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(" ".join(random.Random(0).choices([f"w{i}" for i in range(5, 60)], k=2000)))
    return path


@pytest.fixture(scope="session")
def packed(example, text, tmp_path_factory):
    out = tmp_path_factory.mktemp("packed") / "model"
    record = quant_dllm.quantize(
        example.folder, out, "ladder-1-rounding", settings=SMALL, calibration=text,
        attention_block=example.attention_block,
    )  # fmt: skip
    return record, out
