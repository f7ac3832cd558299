import json

import pytest

from quant_dllm.cli.main import main
from quant_dllm.evaluation import speed
from quant_dllm.kernels import native
from quant_dllm.models.backbone import BackboneConfig
from tests.conftest import GOLDEN

PACKED = str(GOLDEN / "v1-binary")


def answer(capsys, *words):
    assert main([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.skipif(native.missing() is not None, reason=str(native.missing()))
def test_doctor_names_a_kernel_and_the_reasons(capsys, kernels):
    found = answer(capsys, "doctor", PACKED)
    assert found["layers"]
    for layer in found["layers"]:
        assert layer["kernel"].startswith("native (")
        assert layer["refused"]["triton"] == "the weight is on cpu"
    assert "native" in found["machine"] and "threads" in found["machine"]


def test_doctor_tells_of_the_environment(capsys, monkeypatch):
    monkeypatch.setenv("QUANT_DLLM_KERNEL", "reference")
    layer = answer(capsys, "doctor", PACKED)["layers"][0]
    assert layer["kernel"] == "reference"
    assert layer["refused"] == {"others": "QUANT_DLLM_KERNEL is reference"}
    monkeypatch.setenv("QUANT_DLLM_KERNEL", "triton")
    assert main(["doctor", PACKED]) == 2
    assert "which refuses: the weight is on cpu" in capsys.readouterr().err


def test_doctor_of_a_16_bit_model(capsys, small_model):
    assert answer(capsys, "doctor", str(small_model))["layers"] == []
    assert main(["doctor", str(small_model)]) == 0
    assert "is not quantized" in capsys.readouterr().out


def test_bench_of_a_packed_model(capsys, kernels):
    found = answer(capsys, "bench", PACKED, "--length", "8", "--length", "16", "--runs", "2")
    assert [(t["network"], t["length"]) for t in found["timings"]] == [
        ("dense", 8), ("packed", 8), ("dense", 16), ("packed", 16),
    ]  # fmt: skip
    for timing in found["timings"]:
        assert 0 < timing["head"] < timing["seconds"]
        assert timing["tokens_per_second"] == pytest.approx(timing["length"] / timing["seconds"])
    assert found["model_bytes"]["packed"] > found["weight_bytes"]["packed"] > 0


def test_bench_of_a_16_bit_model_and_of_a_shape(capsys, small_model, monkeypatch, kernels):
    few = ("--length", "4", "--runs", "2", "--dtype", "float32")
    assert len(answer(capsys, "bench", str(small_model), *few)["timings"]) == 2
    config = BackboneConfig(
        width=256, blocks=3, heads=4, kv_heads=2, mlp_width=512, vocab=300, context=64,
        rope_theta=1e4, norm_eps=1e-5,
    )  # fmt: skip
    monkeypatch.setitem(speed.SHAPES, "llada-8b", config)
    found = answer(capsys, "bench", "--shape", "llada-8b", "--layers", "2", *few)
    weights = 2 * (2 * 256 * 256 + 2 * 128 * 256 + 3 * 256 * 512)
    assert found["weight_bytes"]["dense"] == 4 * weights
    assert main(["bench", "--shape", "llada-8b", "--layers", "2", *few]) == 0
    assert "tokens/s" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words, said",
    [
        ((), "one of the two"),
        (("tiny", "--shape", "llada-8b"), "one of the two"),
        (("--shape", "llada-9b"), "Did you mean 'llada-8b'"),
        (("--shape", "llada-8b", "--layers", "33"), "33 layers"),
        (("tiny", "--runs", "1"), "At least 2 runs"),
        (("tiny", "--dtype", "int8"), "Unknown dtype 'int8'"),
    ],
)
def test_bench_refuses(capsys, words, said):
    assert main(["bench", *words]) == 2
    assert said in capsys.readouterr().err
