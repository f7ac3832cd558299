from dataclasses import replace

import pytest
import torch

from quant_dllm.calibration.trajectory import DenoisingTrajectory
from quant_dllm.errors import RecipeError
from quant_dllm.pipeline.job import Job
from quant_dllm.recipe import Recipe
from tests.conftest import SMALL_RECIPE

MASK = 9999


def surest_from_the_left(prompt, length, steps, seed):
    """Write 1000 + position, as many tokens a step as it takes; note how far it was asked to go."""
    canvas = torch.cat((prompt, torch.full((len(prompt), length), MASK)), dim=1)
    yield canvas
    for step in range(steps):
        surest_from_the_left.calls += 1
        canvas = canvas.clone()
        stop = prompt.shape[1] + (step + 1) * length // steps
        canvas[:, prompt.shape[1] : stop] = torch.arange(1000 + prompt.shape[1], 1000 + stop)
        yield canvas


def test_window_i_is_shown_when_a_share_i_plus_one_of_n_is_masked():
    surest_from_the_left.calls = 0
    windows = torch.arange(8 * 40).view(8, 40)
    calibration = DenoisingTrajectory(steps=16, batch=4)
    views = list(calibration.views(windows, MASK, 0, surest_from_the_left))
    assert len(views) == 8
    for i, (view, window) in enumerate(zip(views, windows, strict=True)):
        assert torch.equal(view[:10], window[:10])  # the prefix is the text's
        assert (view == MASK).sum() == 30 - (16 - 2 * (i + 1)) * 30 // 16
        written = view[10:][view[10:] != MASK]
        assert torch.equal(written, torch.arange(1010, 1010 + len(written)))  # the rest the model's
    assert surest_from_the_left.calls == 14 + 6  # the first batch stops at its last state


def test_a_prefix_of_everything_is_refused():
    with pytest.raises(RecipeError, match="prompt"):
        DenoisingTrajectory(prompt=1.0)
    with pytest.raises(RecipeError, match="steps"):
        DenoisingTrajectory(steps=0)


def test_the_pipeline_lets_the_model_itself_write(small_model, tmp_path):
    recipe = Recipe.load("gptq-2bit").override(
        {"calibration": "trajectory", "calibration.steps": 6} | SMALL_RECIPE
    )
    job = Job.prepare(
        small_model, recipe, tmp_path / "out", text=None, seed=1, device="cpu", mask_token_id=None
    )
    (views, text), mask = job.views, job.mask_token_id
    assert views.shape == job.windows.shape
    assert torch.equal(views[:, :8], job.windows[:, :8])
    left = (views == mask).sum(1)
    assert left[-1] == 24 and (left.diff() >= 0).all()
    behind = views[:, 8:]
    assert (behind != job.windows[:, 8:])[behind != mask].any()  # its own words, not the text's
    assert torch.equal(text[views != mask], views[views != mask])  # what it wrote is the text
    assert torch.equal(text[views == mask], job.windows[views == mask])
    assert job.views[0] is views  # it writes once
    assert torch.equal(replace(job).views[0], views)
