"""What the bundled model is for: two bits that are clearly better than GPTQ's."""

import pytest

import quant_dllm
from quant_dllm.evaluation.evaluate import Yardstick, held_out

SHORT = {"calibration.sequences": 32}  # a quarter of the default's: so must the suite be
OURS = "quant-dllm-2bit-untuned"  # what tuning adds is seen in `test_tuned`


@pytest.fixture(scope="module")
def tiny():
    return quant_dllm.load("tiny")


@pytest.fixture(scope="module")
def found(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("quality")
    windows = held_out(tiny, None, sequences=16, length=256, seed=0)
    yardstick = Yardstick(windows=windows, base=tiny, draws=2)
    results = {"16-bit": yardstick.measure(tiny)}
    for recipe in (OURS, "gptq-2bit", "rtn-2bit"):
        settings = {} if recipe == "rtn-2bit" else SHORT
        quant_dllm.quantize("tiny", folder / recipe, recipe, settings=settings)
        results[recipe] = yardstick.measure(quant_dllm.load(folder / recipe).unpack())
    return results


def test_two_bits_beat_gptq_beyond_the_error_bars(found):
    ours, gptq = found[OURS], found["gptq-2bit"]
    assert ours.kl + 2 * ours.kl_stderr < gptq.kl - 2 * gptq.kl_stderr
    high = ours.nelbo_excess + 2 * ours.nelbo_excess_stderr
    assert high < gptq.nelbo_excess - 2 * gptq.nelbo_excess_stderr
    assert all(ours.kl_by_mask_ratio[r] < gptq.kl_by_mask_ratio[r] for r in ours.kl_by_mask_ratio)


def test_calibrated_methods_beat_rounding_to_nearest(found):
    gptq, rtn = found["gptq-2bit"], found["rtn-2bit"]
    assert gptq.kl < 0.5 * rtn.kl
    for ratio in (0.25, 0.5, 0.75):  # where all is masked every position is nearly alike
        assert gptq.top1_by_mask_ratio[str(ratio)] > rtn.top1_by_mask_ratio[str(ratio)]
