"""The sampler on models whose logits are a known function."""

from itertools import pairwise

import pytest
import torch

from quant_dllm.errors import RequestError
from quant_dllm.generation.masked import check_schedule, choose, denoise, quotas

MASK, VOCAB = 19, 20


class Known:
    """Predicts token p at position p, the surer the later the position; counts its calls."""

    def __init__(self, sure=lambda p: float(p)):
        self.calls, self.canvases, self.sure = 0, [], sure

    def predict(self, input_ids, positions):
        self.calls += 1
        self.canvases.append((input_ids.clone(), positions))
        at = torch.arange(input_ids.shape[1])[positions]
        logits = torch.zeros(len(input_ids), len(at), VOCAB)
        for i, p in enumerate(at.tolist()):
            logits[:, i, p % MASK] = 1 + self.sure(p)
        return logits


def run(model, **changes):
    options = {"length": 8, "steps": 8, "block_length": 4, "temperature": 0.0, "seed": 0}
    prompt = torch.tensor([[1, 2, 3]])
    return list(denoise(model, prompt, mask_token_id=MASK, **options | changes))


def test_the_surest_token_is_written_first_within_each_block():
    canvases = run(Known())
    written = [(b != a).nonzero()[:, 1].tolist() for a, b in pairwise(canvases)]
    # positions 3–6 from the back, then 7–10 from the back; the first step wrote position 6
    assert canvases[0][0].tolist() == [1, 2, 3, 19, 19, 19, 6, 19, 19, 19, 19]
    assert written == [[5], [4], [3], [10], [9], [8], [7]]
    assert canvases[-1][0].tolist() == [1, 2, 3, 3, 4, 5, 6, 7, 8, 9, 10]


def test_one_call_a_step_and_logits_of_the_active_block_only():
    model = Known()
    run(model, steps=4)
    assert model.calls == 4
    assert [positions for _, positions in model.canvases] == [slice(3, 7)] * 2 + [slice(7, 11)] * 2
    assert (model.canvases[2][0][0, 3:7] != MASK).all()  # the first block is done by then


def test_the_whole_canvas_is_one_block():
    canvases = run(Known(), steps=2, block_length=8)
    assert len(canvases) == 2
    assert (canvases[0] == MASK).sum() == 4 and (canvases[1] == MASK).sum() == 0


def test_the_mask_token_is_never_written():
    class SureOfMask:
        def predict(self, ids, positions):
            logits = torch.zeros(1, positions.stop - positions.start, VOCAB)
            logits[..., MASK] = 100.0
            logits[..., 7] = 1.0
            return logits

    assert run(SureOfMask())[-1][0, 3:].tolist() == [7] * 8


def test_a_seed_repeats_and_a_temperature_follows_the_distribution():
    logits = torch.tensor([0.5, 0.3, 0.2]).log().expand(1, 30000, 3)
    tokens, confidence = choose(logits, 1.0, torch.Generator().manual_seed(0))
    share = torch.bincount(tokens[0], minlength=3) / 30000
    assert (share - torch.tensor([0.5, 0.3, 0.2])).abs().max() < 0.012  # four deviations
    assert torch.allclose(confidence, logits.exp()[0].gather(-1, tokens[0][:, None])[None, :, 0])
    cold, _ = choose(logits, 0.5, torch.Generator().manual_seed(0))
    squares = torch.tensor([0.25, 0.09, 0.04])
    share = torch.bincount(cold[0], minlength=3) / 30000
    assert (share - squares / squares.sum()).abs().max() < 0.012
    flat = Known(sure=lambda p: 0.0)
    assert torch.equal(run(flat, temperature=2.0)[-1], run(flat, temperature=2.0)[-1])
    assert not torch.equal(run(flat, temperature=2.0)[-1], run(flat, temperature=2.0, seed=1)[-1])


def test_the_first_steps_take_what_is_left_over():
    assert quotas(7, 3) == [3, 2, 2]
    assert sum(quotas(32, 5)) == 32


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ((10, 10, 4), "no multiple of block length 4; 8 would be"),
        ((8, 3, 4), "do not spread over 2 blocks"),
        ((8, 16, 4), "do not spread over 2 blocks"),
        ((0, 1, 1), "at least 1"),
    ],
)
def test_a_schedule_that_does_not_divide_is_refused(schedule, message):
    with pytest.raises(RequestError, match=message):
        check_schedule(*schedule)
