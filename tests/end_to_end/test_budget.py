"""One budget over all matrices, from the command line to the file."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import moments
import runs
from quant_dllm.cli.main import main
from quant_dllm.errors import RecipeError
from quant_dllm.models.bundled import bundled_text
from quant_dllm.models.load import load
from quant_dllm.models.source import open_model
from quant_dllm.pipeline import sensitivity
from quant_dllm.pipeline.entry import batches
from quant_dllm.pipeline.job import Job
from quant_dllm.pipeline.quantize import quantize
from quant_dllm.pipeline.sensitivity import SensitivityPass, draw
from quant_dllm.planning.plan import plan
from quant_dllm.recipe import Recipe
from quant_dllm.record import RunRecord
from quant_dllm.statistics import reduction
from quant_dllm.statistics.sensitivity import expected_increase
from tests.conftest import ROUNDED, SMALL_RECIPE

SPENT = SMALL_RECIPE | {
    "precision": "sensitivity", "quantizer.rounds": 2, "quantizer.refinements": 0,
}  # fmt: skip
BUDGET = {k: v for k, v in runs.settings().items() if k != "precision.ratio"} | {
    "precision": "sensitivity", "precision.bits": 2.25,
}  # fmt: skip


@pytest.fixture(scope="module")
def text():
    return bundled_text(open_model("tiny"), "calibration")


def job_of(model, text, **settings):
    recipe = Recipe.load(ROUNDED).override(SPENT | settings)
    return Job.prepare(
        model, recipe, Path("nowhere"), text=text, seed=0, device="cpu", mask_token_id=None
    )


def by_the_whole_model(job):
    """Back-propagate through the whole model at once; add up outer products token by token."""
    model, (views, _) = load(job.source.folder.path), job.views
    hidden, found = views == job.mask_token_id, {}
    for layer in model.backbone.parameters():
        layer.requires_grad_(False)
    numbers = {n: rows for shard in batches(*views.shape) for n, rows in shard.items()}
    for number, rows in numbers.items():
        seen = {}
        hooks = [
            model.backbone.get_submodule(slot).register_forward_hook(
                lambda _, args, out, slot=slot, seen=seen: seen.update({slot: (args[0], out)})
            )
            for slot in job.source.layers
        ]
        x = model.backbone.embed(views[rows]).requires_grad_(True)
        sight = model.backbone.sight(x.shape[1], "cpu")
        for block in model.backbone.blocks:
            x = block(x, sight)
        where = hidden[rows]
        logits = model.backbone.project(x[job.source.rows(where)])
        u = torch.rand(len(logits), generator=torch.Generator().manual_seed(number))
        loss = F.cross_entropy(logits, draw(logits.detach(), u), reduction="none")
        weight = (1 / where.sum(1) / len(views)).sqrt()[where.nonzero()[:, 0]]
        outputs = [out for _, out in seen.values()]
        gradients = torch.autograd.grad((loss * weight).sum(), outputs)
        for (slot, (y, _)), g in zip(seen.items(), gradients, strict=True):
            y, g = y.detach().flatten(0, 1).double(), g.flatten(0, 1).double()
            H, fisher = found.get(slot, (0, 0))
            weighed = torch.einsum("t,ti,tj->ij", g.square().mean(1), y, y)
            found[slot] = H + torch.einsum("ti,tj->ij", y, y), fisher + weighed
        for hook in hooks:
            hook.remove()
    return model, found


def test_the_streamed_pass_is_one_through_the_whole_model(small_model, text, tmp_path):
    job = job_of(small_model, text, **{"calibration.sequences": 10})
    model, expected = by_the_whole_model(job)
    found = SensitivityPass(job, 32768, tmp_path, 1000).run(lambda: None)
    assert list(tmp_path.iterdir()) == []  # nothing is left
    assert found.keys() == expected.keys() == set(job.source.layers)
    for slot, (H, fisher) in expected.items():
        weight = model.backbone.get_submodule(slot).weight
        wanted = expected_increase(weight, H.float(), fisher.float(), 0.01, 16)
        assert torch.allclose(torch.tensor(found[slot]).double(), wanted, rtol=2e-2), slot


def test_sums_that_do_not_fit_wait_on_disk(small_model, text, tmp_path, monkeypatch):
    job = job_of(small_model, text, **{"calibration.sequences": 10})
    fits = SensitivityPass(job, 32768, tmp_path, 1000).run(lambda: None)
    monkeypatch.setattr(sensitivity, "ACCOUNT_BYTES", 1)
    made = Mock(wraps=reduction.TemporaryFile)
    monkeypatch.setattr(reduction, "TemporaryFile", made)
    waits = SensitivityPass(job, 32768, tmp_path, 1000).run(lambda: None)
    assert waits == fits
    assert made.call_args.kwargs == {"dir": tmp_path}


def test_no_budget_of_two_bits_stores_more(small_model, text, tmp_path):
    made = quantize(small_model, tmp_path / "a", ROUNDED, settings=SPENT, calibration=text)
    assert 1.98 < made.bits.code <= 2.0
    orders = {order for layer in made.layers for order in layer.orders}
    assert orders <= set("1234") and len(orders) > 1
    assert len({layer.code_bits for layer in made.layers}) > 2  # bits moved between layers
    assert all(layer.increase >= 0 for layer in made.layers)
    read = json.loads((tmp_path / "a" / "quant_dllm.json").read_text())
    assert RunRecord.from_dict(read) == made
    again = quantize(small_model, tmp_path / "b", ROUNDED, settings=SPENT, calibration=text)
    assert again.fingerprint == made.fingerprint
    model = load(tmp_path / "a")
    assert torch.isfinite(model(torch.arange(32)[None]).logits).all()


def test_it_is_asked_for_by_one_word_and_told_layer_by_layer(small_model, text, tmp_path, capsys):
    sets = [f"--set={k}={v}" for k, v in SMALL_RECIPE.items()] + ["--set=quantizer.refinements=0"]
    words = [str(small_model), "-r", ROUNDED, "--calibration", str(text), *sets]
    assert main(["quantize", *words, "-o", str(tmp_path / "a"), "--bits", "1.75", "--json"]) == 0
    bits = json.loads(capsys.readouterr().out)["bits"]
    assert 1.7 < bits["code"] <= 1.75
    assert main(["plan", *words, "--bits", "1.75", "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)["bits"]
    assert planned["code"] == pytest.approx(1.75)
    assert planned["file"] == pytest.approx(bits["file"], rel=0.01)
    assert main(["inspect", str(tmp_path / "a")]) == 0
    said = capsys.readouterr().out
    assert "expected KL" in said and "1×" in said
    for asked, wanted in [
        (("-r", "gptq-2bit", "--bits", "2.25"), "--recipe quant-dllm-2bit"),
        (("--bits", "2", "--file-bits", "3"), "two budgets"),
        (("--file-bits", "1.5"), "cannot be reached: with one plane a block"),
        (("--bits", "0.5"), "from 1 to 4"),
        (("--bits", "nan"), "from 1 to 4"),
    ]:
        assert main(["plan", *words[:-1], *asked]) == 2, asked
        said = capsys.readouterr().err
        assert wanted in said and len(said.splitlines()) == 1
    with pytest.raises(RecipeError, match="gptq stores none"):
        plan(small_model, "gptq-2bit", settings={"precision": "sensitivity"})


@pytest.mark.parametrize("scales", [16, 8])
def test_the_whole_file_is_as_small_as_was_asked(small_model, text, tmp_path, capsys, scales):
    outside = ["--set=outside=grouped", "--set=outside.bits=4", f"--set=quantizer.scales={scales}"]
    sets = [f"--set={k}={v}" for k, v in SMALL_RECIPE.items()] + ["--set=quantizer.refinements=0"]
    words = [str(small_model), "-r", ROUNDED, "--calibration", str(text), *sets, *outside]
    assert main(["plan", *words, "--bits", "2", "--json"]) == 0
    two = json.loads(capsys.readouterr().out)["bits"]["file"]
    asked = ["--file-bits", str(round(two, 3)), "--json"]
    assert main(["quantize", *words, *asked, "-o", str(tmp_path / "a")]) == 0
    found = json.loads(capsys.readouterr().out)["bits"]["file"]
    assert two - 0.1 < found <= round(two, 3)


def test_it_goes_on_after_a_kill_and_on_two_processes_to_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "settings", lambda recipe="": BUDGET)
    model = runs.make_model(tmp_path / "model")
    runs.run(model, tmp_path / "unbroken")
    wanted = runs.digests(tmp_path / "unbroken")
    for phase, number in [("embedding", 7), ("rounding", 5)]:  # while it measures; behind it
        out = tmp_path / phase
        assert moments.kill_in(phase, number, model, out) == -signal.SIGKILL
        result = runs.go_on(model, out, wanted)
        assert result["equal"], result
    sets = [f"--set={k}={v}" for k, v in BUDGET.items()]
    out = ["-r", runs.ROUNDED, "-o", str(tmp_path / "two")]
    words = ["quantize", str(model), *out, "--gpus", "2", *sets]
    command = [sys.executable, "-m", "quant_dllm.cli.main", *words]
    text = ["--calibration", str(model / runs.TEXT)]
    done = subprocess.run([*command, *text], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert runs.digests(tmp_path / "two") == wanted


def test_text_without_masks_is_refused(small_model, text, tmp_path):
    with pytest.raises(RecipeError, match="masks none"):
        quantize(
            small_model, tmp_path / "out", ROUNDED, calibration=text,
            settings=SPENT | {"calibration": "visible"},
        )  # fmt: skip
    assert list(tmp_path.iterdir()) == []
