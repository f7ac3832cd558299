import pytest

from quant_dllm.evaluation.evaluate import evaluate
from quant_dllm.kernels import native
from quant_dllm.pipeline.quantize import quantize


@pytest.mark.skipif(native.missing() is not None, reason=str(native.missing()))
def test_the_bound_of_tiny_is_that_of_the_reference(tmp_path, monkeypatch):
    settings = {"calibration.sequences": 4, "calibration.length": 64,
                "quantizer.rounds": 2, "quantizer.refinements": 0}  # fmt: skip
    quantize("tiny", tmp_path / "packed", "ladder-1-rounding", settings=settings)
    found = {}
    for kernel in ("reference", "native", "native-precise"):
        monkeypatch.setenv("QUANT_DLLM_KERNEL", kernel)
        found[kernel] = evaluate(tmp_path / "packed", None, None, sequences=4, draws=2).nelbo
    assert found["native"] == pytest.approx(found["reference"], rel=1e-3)
    assert found["native-precise"] == pytest.approx(found["reference"], rel=1e-4)
