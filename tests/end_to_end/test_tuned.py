"""A recipe that tunes: closer to the 16-bit model, on text that it was not calibrated on."""

import json
import os
import signal

import pytest
import torch
from safetensors.torch import load_file

from quant_dllm.calibration.corpus import fingerprint, token_windows
from quant_dllm.errors import Interrupted, RecipeError, TextError
from quant_dllm.evaluation.evaluate import Yardstick, held_out
from quant_dllm.models.bundled import bundled_text
from quant_dllm.models.load import load
from quant_dllm.models.source import open_model
from quant_dllm.pipeline.job import Job
from quant_dllm.pipeline.quantize import quantize
from quant_dllm.pipeline.resume import resume
from quant_dllm.planning.plan import plan
from quant_dllm.recipe import Recipe
from quant_dllm.record import RunRecord
from tests.conftest import ROUNDED, SMALL_RECIPE

QUICK = {
    "calibration.sequences": 8, "calibration.length": 128, "quantizer.rounds": 2,
    "quantizer.refinements": 0,
}  # fmt: skip
TUNING = {
    "tuning": "end-to-end", "tuning.steps": 9, "tuning.batch": 8, "tuning.length": 128,
    "tuning.rate": 0.01, "tuning.validation": 8, "tuning.validate_every": 3, "tuning.round": 3,
}  # fmt: skip
SMALL = SMALL_RECIPE | TUNING | {"tuning.length": 32, "tuning.steps": 5, "tuning.rate": 0.003}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    out = tmp_path_factory.mktemp("tuned")
    rounded = quantize("tiny", out / "rounded", ROUNDED, settings=QUICK)
    tuned = quantize("tiny", out / "tuned", ROUNDED, settings=QUICK | TUNING)
    return out, rounded, tuned


def test_it_comes_closer_on_text_that_it_never_saw(folders):
    out, _, _ = folders
    base = load("tiny")
    windows = held_out(base, None, sequences=16, length=128, seed=0)
    yardstick = Yardstick(windows=windows, base=base, draws=2)
    before, after = (yardstick.measure(load(out / name).unpack()) for name in ("rounded", "tuned"))
    assert after.kl < 0.9 * before.kl
    assert after.nelbo_excess < before.nelbo_excess


def test_planes_stay_and_scales_change_and_no_bit_is_added(folders):
    out, rounded, tuned = folders
    before, after = load(out / "rounded"), load(out / "tuned")
    for old, new in zip(before.packed(), after.packed(), strict=True):
        assert torch.equal(old.weight.planes, new.weight.planes)
        assert not torch.equal(old.weight.row_scales, new.weight.row_scales)
    assert torch.equal(before.backbone.embed.weight, after.backbone.embed.weight)
    assert tuned.bits.stored == rounded.bits.stored
    assert tuned.bits.file == pytest.approx(rounded.bits.file, rel=1e-3)


def test_the_record_tells_how_it_went(folders):
    out, rounded, tuned = folders
    assert rounded.tuning is None and tuned.tuning is not None
    assert len(tuned.tuning.curve) == 1 + 9 / 3
    assert min(tuned.tuning.curve) < 0.9 * tuned.tuning.curve[0]
    written = json.loads((out / "tuned" / "quant_dllm.json").read_text())
    assert RunRecord.from_dict(written) == tuned
    assert tuned.fingerprint != rounded.fingerprint
    assert tuned.peak_memory and tuned.seconds >= tuned.tuning.seconds
    assert sorted(p.name for p in out.iterdir()) == ["rounded", "tuned"]  # nothing hidden is left


def test_page_and_events_tell_of_tuning(folders):
    out, _, tuned = folders
    lines = (out / "tuned" / "events.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    names = [event["event"] for event in events]
    assert names == ["start", *["layer"] * 42, "rounded", *["tuning"] * 4, "end"]
    looks = [event["validation"] for event in events if event["event"] == "tuning"]
    assert looks == pytest.approx(tuned.tuning.curve, abs=1e-5)
    page = (out / "tuned" / "report.html").read_text()
    assert "What tuning brought" in page and f"{min(tuned.tuning.curve):.3f}</text>" in page
    assert "What tuning brought" not in (out / "rounded" / "report.html").read_text()


def test_a_timed_plan_counts_the_updates(small_model):
    text = bundled_text(open_model("tiny"), "calibration")
    few, many = (
        plan(small_model, ROUNDED, calibration=text, timed=True,
             settings=SMALL | {"tuning.steps": steps})
        for steps in (5, 1005)
    )  # fmt: skip
    assert many.seconds - few.seconds > 1  # a thousand updates of a millisecond and more


def test_one_seed_gives_one_checkpoint(small_model, tmp_path):
    text = bundled_text(open_model("tiny"), "calibration")
    first, again = (
        quantize(small_model, tmp_path / name, ROUNDED, settings=SMALL, calibration=text, seed=5)
        for name in "ab"
    )
    assert first.fingerprint == again.fingerprint


def scales(folder):
    """All that was tuned, in one vector."""
    tensors = load_file(folder / "model.safetensors")
    return torch.cat(
        [t.float().flatten() for _, t in sorted(tensors.items()) if t.is_floating_point()]
    )


@pytest.mark.parametrize(
    ("limits", "same"),
    [
        ({"KEPT_BYTES": 0}, True),  # blocks run again for the gradient
        ({"VISIT_TOKENS": 300}, True),  # the 16-bit model is asked more often
        ({"PART_TOKENS": 64}, False),  # two windows at a time, whose gradients are summed
        ({"HEAD_ROWS": 7}, False),
    ],
)
def test_less_memory_learns_the_same(limits, same, small_model, tmp_path, monkeypatch):
    text = bundled_text(open_model("tiny"), "calibration")
    first = quantize(small_model, tmp_path / "a", ROUNDED, settings=SMALL, calibration=text)
    for name, value in limits.items():
        monkeypatch.setattr(f"quant_dllm.pipeline.tune.{name}", value)
    again = quantize(small_model, tmp_path / "b", ROUNDED, settings=SMALL, calibration=text)
    assert (again.fingerprint == first.fingerprint) or not same
    rounded = quantize(small_model, tmp_path / "c", ROUNDED, calibration=text,
                       settings=SMALL_RECIPE)  # fmt: skip
    a, b, c = (scales(tmp_path / name) for name in "abc")
    assert rounded.fingerprint != first.fingerprint
    assert (a - b).norm() < 0.05 * (a - c).norm()


def test_calibration_tuning_and_evaluation_texts_are_disjoint(tmp_path):
    recipe = Recipe.load("quant-dllm-2bit")
    job = Job.prepare(
        "tiny", recipe, tmp_path / "out", text=None, seed=3, device="cpu", mask_token_id=None
    )
    model = load("tiny")
    parts = [job.windows, job.tuning_text.windows, job.tuning_text.validation]
    for split in ("heldout", "validation"):
        path = bundled_text(model.source, split)
        parts.append(token_windows(path, model.tokenizer, sequences=1, length=256, every=True))
    hashes = [{fingerprint(window[None]) for window in windows} for windows in parts]
    assert len(hashes[0]) == 128
    assert len(set().union(*hashes)) == sum(len(part) for part in hashes)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"quantizer": "gptq"}, RecipeError, "gptq stores none"),
        ({"calibration.windows": "long-documents"}, RecipeError, "calibration.windows=packed"),
        ({"tuning.batch": 10**6}, TextError, "left to tune on"),
        ({"tuning.steps": 0}, RecipeError, "steps 0"),
    ],
)
def test_what_cannot_be_tuned_is_refused(settings, error, message, small_model, tmp_path):
    text = bundled_text(open_model("tiny"), "calibration")
    with pytest.raises(error, match=message):
        quantize(
            small_model, tmp_path / "out", ROUNDED, settings=SMALL | settings, calibration=text
        )
    assert not any(tmp_path.iterdir())


def test_a_tuning_that_was_stopped_goes_on_to_the_same_bytes(small_model, tmp_path, monkeypatch):
    text = bundled_text(open_model("tiny"), "calibration")
    whole = quantize(small_model, tmp_path / "whole", ROUNDED, settings=SMALL, calibration=text)

    def stopping(items, what, total):
        for i, item in enumerate(items):
            yield item
            if what == "tuning" and i == 1:
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted, match="stopped at step 3 of tuning"):
        quantize(
            small_model, tmp_path / "out", ROUNDED, settings=SMALL, calibration=text, track=stopping
        )
    assert not (tmp_path / "out").exists()
    gone_on = resume(tmp_path / "out")
    assert gone_on.fingerprint == whole.fingerprint
    assert gone_on.tuning.curve == whole.tuning.curve
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "whole"]
