import math

import pytest
import torch

from quant_dllm.calibration.mcs import MaskedCalibrationSimulation
from quant_dllm.calibration.visible import Visible
from quant_dllm.errors import RecipeError

MASK = 9999


def masked_share(views, prompt):
    return [(view[prompt:] == MASK).float().mean().item() for view in views]


def test_one_timestep_a_window_follows_the_schedule():
    n, length, prompt = 64, 2000, 500
    windows = torch.arange(n * length).view(n, length) % 5000
    views = list(MaskedCalibrationSimulation().views(windows, MASK, seed=3))
    assert len(views) == n
    for i, share in enumerate(masked_share(views, prompt)):
        t = (i + 1) / n
        spread = math.sqrt(t * (1 - t) / (length - prompt))
        assert abs(share - t) <= 5 * spread + 1e-9  # five deviations: one in 10⁶
    assert masked_share(views, prompt)[-1] == 1.0  # the last is wholly masked


def test_the_prefix_is_visible_and_what_is_visible_is_unchanged():
    windows = torch.arange(800).view(8, 100)
    for view, window in zip(
        MaskedCalibrationSimulation(prompt=0.25).views(windows, MASK, 0), windows, strict=True
    ):
        assert torch.equal(view[:25], window[:25])
        assert torch.equal(view[view != MASK], window[view != MASK])


def test_copies_show_every_window_at_every_timestep():
    windows = torch.arange(4000).view(2, 2000) % 5000
    views = list(MaskedCalibrationSimulation(timesteps=4, prompt=0.0).views(windows, MASK, 0))
    assert len(views) == 8
    for v, share in enumerate(masked_share(views, 0)):
        assert abs(share - (v % 4 + 1) / 4) < 0.06  # five deviations of 2000 draws
        window = windows[v // 4]
        assert torch.equal(views[v][views[v] != MASK], window[views[v] != MASK])


def test_masks_are_drawn_for_each_position_alone():
    windows = torch.zeros(2000, 40, dtype=torch.long)
    views = torch.stack(list(MaskedCalibrationSimulation(prompt=0.0).views(windows, MASK, 0)))
    by_position = (views == MASK).float().mean(0)
    assert (by_position - 0.5).abs().max() < 0.07  # mean t is one half at every position
    half = (views[900:1100] == MASK).float()  # t near one half
    together = (half[:, 0] * half[:, 1]).mean()
    assert abs(together - 0.25) < 0.15


def test_a_seed_gives_the_same_masks_and_another_one_others():
    windows = torch.arange(400).view(4, 100)
    views = [
        torch.stack(list(MaskedCalibrationSimulation().views(windows, MASK, seed)))
        for seed in (0, 0, 1)
    ]
    assert torch.equal(views[0], views[1])
    assert not torch.equal(views[0], views[2])


def test_visible_hides_nothing():
    windows = torch.arange(400).view(4, 100)
    assert torch.equal(torch.stack(list(Visible().views(windows, MASK, 0))), windows)


@pytest.mark.parametrize(
    "options", [{"prompt": 1.0}, {"timesteps": 0}, {"sequences": 0}, {"damping": 0.0}]
)
def test_a_calibration_that_shows_nothing_is_refused(options):
    with pytest.raises(RecipeError, match=next(iter(options))):
        MaskedCalibrationSimulation(**options)
