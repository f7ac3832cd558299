"""Blocks that are tuned by themselves: closer to what the full-precision block gives."""

import os
import signal
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from quant_dllm.cli.main import main
from quant_dllm.errors import Interrupted, QuantDLLMError
from quant_dllm.evaluation.evaluate import Yardstick, held_out
from quant_dllm.models.bundled import bundled_text
from quant_dllm.models.load import load
from quant_dllm.models.source import open_model
from quant_dllm.pipeline.job import Job
from quant_dllm.pipeline.quantize import quantize
from quant_dllm.pipeline.resume import resume
from quant_dllm.pipeline.tune_block import BlockTuning, relative_error
from quant_dllm.planning.plan import plan
from quant_dllm.recipe import Recipe
from tests.conftest import ROUNDED, SMALL_RECIPE

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import runs

BLOCKS = {"block_tuning": "block-by-block", "block_tuning.passes": 3}
QUICK = {
    "calibration.sequences": 48, "calibration.length": 128, "quantizer.rounds": 2,
    "quantizer.refinements": 0,
}  # fmt: skip
HELD = [slice(12, 16), slice(36, 40)]
"""Of 48 windows in eight shards of six, cut into four and two: every eighth piece."""
SMALL = SMALL_RECIPE | BLOCKS | {"calibration.sequences": 32, "block_tuning.rate": 0.002}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    out = tmp_path_factory.mktemp("blocks")
    rounded = quantize("tiny", out / "rounded", ROUNDED, settings=QUICK)
    tuned = quantize("tiny", out / "tuned", ROUNDED, settings=QUICK | BLOCKS)
    return out, rounded, tuned


@pytest.fixture(scope="module")
def text():
    return bundled_text(open_model("tiny"), "calibration")


def test_it_comes_closer_on_text_that_it_never_saw(folders):
    out, _, _ = folders
    base = load("tiny")
    windows = held_out(base, None, sequences=16, length=128, seed=0)
    yardstick = Yardstick(windows=windows, base=base, draws=2)
    before, after = (yardstick.measure(load(out / name).unpack()) for name in ("rounded", "tuned"))
    assert after.kl < 0.95 * before.kl


def test_planes_stay_and_scales_change_and_no_bit_is_added(folders):
    out, rounded, tuned = folders
    before, after = load(out / "rounded"), load(out / "tuned")
    assert rounded.bits == tuned.bits
    first = zip(before.backbone.blocks[0].modules(), after.backbone.blocks[0].modules(),
                strict=True)  # fmt: skip
    layers = [pair for pair in first if hasattr(pair[0], "weight_bytes")]
    assert len(layers) == 7
    for old, new in layers:  # of the first block: what comes behind is rounded for another stream
        assert torch.equal(old.weight.planes, new.weight.planes)
        assert not torch.equal(old.weight.row_scales, new.weight.row_scales)
        assert not torch.equal(old.weight.column_scales, new.weight.column_scales)


def test_the_record_tells_the_errors_of_the_blocks_that_are_written(folders, tmp_path):
    """The whole networks, run over the same views, give the error that the tuning ended with."""
    out, rounded, tuned = folders
    assert rounded.block_tuning == [] and len(tuned.block_tuning) == 6
    assert all(len(curve) == 4 for curve in tuned.block_tuning)
    recipe = Recipe.load(ROUNDED).override(QUICK | BLOCKS)
    job = Job.prepare(
        "tiny", recipe, tmp_path / "out", text=None, seed=0, device="cpu", mask_token_id=None
    )
    canvases, _ = job.views
    states, twins = (hidden_behind_blocks(load(model).unpack(), canvases)
                     for model in (out / "tuned", "tiny"))  # fmt: skip
    for ours, theirs, curve in zip(states, twins, tuned.block_tuning, strict=True):
        held = [relative_error(ours[some], theirs[some]).item() for some in HELD]
        assert min(curve) == pytest.approx(sum(held) / len(held), rel=0.01)
        assert min(curve) < curve[0]


def test_page_and_inspect_tell_of_it(folders, capsys):
    out, _, tuned = folders
    assert main(["inspect", str(out / "tuned")]) == 0
    told = capsys.readouterr().out
    before = sum(curve[0] for curve in tuned.block_tuning) / 6
    assert f"block by block, error {before:.2e}, then" in told
    for name, shown in (("tuned", True), ("rounded", False)):
        page = (out / name / "report.html").read_text()
        assert ("What tuning brought, block by block" in page) == shown


@torch.no_grad()
def hidden_behind_blocks(model, canvases):
    network = model.backbone
    x, sight = network.embed(canvases), network.sight(canvases.shape[1], canvases.device)
    found = []
    for block in network.blocks:
        x = block(x, sight)
        found.append(x)
    return found


def test_one_seed_gives_one_checkpoint(small_model, tmp_path, text):
    found = [
        quantize(small_model, tmp_path / name, ROUNDED, settings=SMALL, calibration=text, seed=5)
        for name in "ab"
    ]
    assert found[0].fingerprint == found[1].fingerprint
    assert found[0].block_tuning == found[1].block_tuning
    assert all(min(curve) < curve[0] for curve in found[0].block_tuning)


def test_one_that_was_stopped_goes_on_to_the_same_bytes(small_model, tmp_path, text, monkeypatch):
    whole = quantize(small_model, tmp_path / "whole", ROUNDED, settings=SMALL, calibration=text)
    validate, calls = BlockTuning.validate, []

    def stopping(self):
        calls.append(self.work.index)
        if calls.count(1) == 2:  # in the second block, behind its first pass
            os.kill(os.getpid(), signal.SIGINT)
        return validate(self)

    monkeypatch.setattr(BlockTuning, "validate", stopping)
    with pytest.raises(Interrupted, match="stopped in block 1; all finished layers are saved"):
        quantize(small_model, tmp_path / "out", ROUNDED, settings=SMALL, calibration=text)
    monkeypatch.undo()
    gone_on = resume(tmp_path / "out")
    assert gone_on.fingerprint == whole.fingerprint
    assert gone_on.block_tuning == whole.block_tuning
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "out"))
    assert all(torch.equal(a[name], b[name]) for name in a | b)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "whole"]


def test_processes_tune_on_their_shares(tmp_path, unchecked):
    model = runs.make_model(tmp_path / "model")
    recipe = Recipe.load(ROUNDED).override(
        runs.settings() | BLOCKS | {"calibration.sequences": 32, "block_tuning.rate": 0.002}
    )
    for name, count in (("one", 1), ("two", 2), ("again", 2)):

        def work(name=name):
            quantize(model, tmp_path / name, recipe, calibration=model / runs.TEXT)

        assert runs.forked_ranks(count, work) == [runs.DONE] * count
    assert runs.digests(tmp_path / "two") == runs.digests(tmp_path / "again")
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    assert any(not torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quantizer": "gptq"}, "block_tuning is block-by-block, which tunes the scales"),
        ({"block_tuning.passes": 0}, "block_tuning has passes 0"),
        ({"block_tuning.validation": 0.7}, "validation at most 0.5"),
        ({"block_tuning": "layer-by-layer"}, "No such block tuning|Unknown block tuning"),
        ({"calibration.sequences": 1}, "2 are wanted at least"),
    ],
)
def test_what_cannot_be_tuned_is_refused(settings, message, small_model, tmp_path, text):
    with pytest.raises(QuantDLLMError, match=message):
        quantize(
            small_model, tmp_path / "out", ROUNDED, settings=SMALL | settings, calibration=text
        )
    assert not any(tmp_path.iterdir())


def test_a_timed_plan_counts_the_passes(small_model, text):
    few, many = (
        plan(small_model, ROUNDED, calibration=text, timed=True,
             settings=SMALL | {"block_tuning.passes": passes})
        for passes in (1, 101)
    )  # fmt: skip
    assert many.seconds - few.seconds > 0.5
