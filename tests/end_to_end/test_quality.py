"""What the bundled model is for: two bits that are clearly better than GPTQ's."""

import gzip

import pytest

import quant_dllm
from quant_dllm.evaluation.evaluate import Yardstick, held_out
from quant_dllm.models.source import locate

END = "<|endoftext|>"
HALF = {"calibration.sequences": 64}  # half the default's windows: the suite must stay short


@pytest.fixture(scope="module")
def tiny():
    return quant_dllm.load("tiny")


@pytest.fixture(scope="module")
def found(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("quality")
    yardstick = Yardstick(windows=held_out(tiny, None, sequences=32, length=256, seed=0), base=tiny)
    results = {"16-bit": yardstick.measure(tiny)}
    for recipe in ("quant-dllm-2bit", "gptq-2bit", "rtn-2bit"):
        settings = {} if recipe == "rtn-2bit" else HALF
        quant_dllm.quantize("tiny", folder / recipe, recipe, settings=settings)
        results[recipe] = yardstick.measure(quant_dllm.load(folder / recipe))
    return results


def test_the_default_beats_gptq_beyond_the_error_bars(found):
    ours, gptq = found["quant-dllm-2bit"], found["gptq-2bit"]
    assert ours.bits.code == gptq.bits.code == 2.0
    assert ours.kl + 2 * ours.kl_stderr < gptq.kl - 2 * gptq.kl_stderr
    high = ours.nelbo_excess + 2 * ours.nelbo_excess_stderr
    assert high < gptq.nelbo_excess - 2 * gptq.nelbo_excess_stderr
    assert all(ours.kl_by_mask_ratio[r] < gptq.kl_by_mask_ratio[r] for r in ours.kl_by_mask_ratio)


def test_calibrated_methods_beat_rounding_to_nearest(found):
    assert found["gptq-2bit"].kl < 0.5 * found["rtn-2bit"].kl
    assert found["gptq-2bit"].top1_agreement > found["rtn-2bit"].top1_agreement


def test_no_story_is_in_two_splits():
    stories = []
    for split in ("calibration", "validation", "heldout"):
        text = gzip.decompress((locate("tiny") / f"{split}.txt.gz").read_bytes()).decode()
        stories.append({story.strip() for story in text.split(END)} - {""})
    assert all(len(split) > 500 for split in stories)
    assert len(set.union(*stories)) == sum(len(split) for split in stories)
