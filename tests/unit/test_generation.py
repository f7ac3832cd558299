"""The sampler on models whose logits are a known function."""

from itertools import pairwise

import pytest
import torch

from quant_dllm.errors import RequestError
from quant_dllm.generation.choose import certainty, choose, kept, nucleus
from quant_dllm.generation.generate import checked
from quant_dllm.generation.masked import EDITS, check_schedule, denoise, plan, quotas
from quant_dllm.generation.pieces import decode
from quant_dllm.models.sampling import Sampling

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


def run(model, prompt=(1, 2, 3), length=8, seed=0, attention_block=None, ends=frozenset(), **given):
    return list(
        denoise(
            model, torch.tensor([prompt]), length=length, seed=seed, mask_token_id=MASK, ends=ends,
            attention_block=attention_block, sampling=Sampling(**{"block_length": 4} | given),
        )
    )  # fmt: skip


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
        ((0, 1, 1), "length is 0; 1 or more is wanted"),
    ],
)
def test_a_schedule_that_does_not_divide_is_refused(schedule, message):
    with pytest.raises(RequestError, match=message):
        check_schedule(*schedule)


def test_the_threshold_writes_all_that_is_sure_and_always_the_quota():
    """Even positions are sure, odd ones are not: four at once, then one a call."""
    model = Known(sure=lambda p: 9.0 if p % 2 else float(p) / 8)
    canvases = run(model, block_length=8, threshold=0.9)
    assert model.calls == len(canvases) == 5
    assert (canvases[0][0, 3:] != MASK).nonzero()[:, 0].tolist() == [0, 2, 4, 6]
    assert run(Known(), block_length=8, threshold=1.0)[-1].tolist() == run(Known())[-1].tolist()


@pytest.mark.parametrize("remasking", ["confidence", "entropy", "margin"])
def test_rankings_of_a_known_distribution(remasking):
    """Three positions, sorted differently by each rule."""
    p = torch.tensor([[0.5, 0.49, 0.01, 0.0], [0.45, 0.2, 0.2, 0.15], [0.48, 0.3, 0.11, 0.11]])
    logits = p.log()[None]
    _, confidence = choose(logits, 0.0, torch.Generator())
    rank = certainty(logits, confidence, Sampling(remasking=remasking), torch.Generator())
    entropy = -(p * p.clamp_min(1e-30).log()).sum(-1)
    expected = {
        "confidence": torch.tensor([0.5, 0.45, 0.48]),
        "entropy": -entropy,
        "margin": torch.tensor([0.01, 0.25, 0.18]),
    }
    assert torch.allclose(rank[0], expected[remasking], atol=1e-5)
    order = {"confidence": [0, 2, 1], "entropy": [0, 2, 1], "margin": [1, 2, 0]}
    assert rank[0].argsort(descending=True).tolist() == order[remasking]


def test_a_random_order_follows_the_seed():
    orders = [run(Known(), block_length=8, remasking="random", seed=s) for s in (0, 0, 1)]
    first, again, other = ([c.tolist() for c in canvases] for canvases in orders)
    assert first == again != other
    assert first[-1] == other[-1]  # Known writes the same whatever the order


def test_only_hidden_positions_are_kept():
    rank = torch.tensor([[0.9, 0.1, 0.8, 0.7]])
    hidden = torch.tensor([[False, True, True, True]])
    assert kept(rank, rank, hidden, 2, None).tolist() == [[False, False, True, True]]
    assert kept(rank, rank, hidden, 1, 0.7).tolist() == [[False, False, True, True]]
    assert kept(rank, rank, hidden, 4, None).tolist() == hidden.tolist()


def test_the_nucleus_is_the_least_set_of_that_probability():
    p = torch.tensor([[[0.1, 0.5, 0.15, 0.25]]])
    assert nucleus(p, 0.7).gt(0).tolist() == [[[False, True, False, True]]]
    assert nucleus(p, 0.75).gt(0).tolist() == [[[False, True, False, True]]]
    assert nucleus(p, 0.8).gt(0).tolist() == [[[False, True, True, True]]]
    assert nucleus(p, 0.01).gt(0).sum() == 1
    tokens, _ = choose(p.log().expand(1, 5000, 4), 1.0, torch.Generator().manual_seed(0), 0.7)
    share = torch.bincount(tokens[0], minlength=4) / 5000
    assert share[0] == share[2] == 0 and abs(share[1] - 2 / 3) < 0.03  # four deviations


def test_blocks_of_block_causal_models_are_counted_from_the_first_token():
    """A prompt of 3 shares its block of 4 with the answer; the last block is written whole."""
    blocks = plan(3, 6, Sampling(), 4)
    assert blocks == [(slice(3, 4), 1), (slice(4, 8), 4), (slice(8, 12), 4)]
    assert plan(8, 4, Sampling(), 4) == [(slice(8, 12), 4)]
    sub = plan(3, 6, Sampling(block_length=2), 4)
    assert [s for s, _ in sub] == [
        slice(3, 4),
        slice(4, 6),
        slice(6, 8),
        slice(8, 10),
        slice(10, 12),
    ]
    assert [c for _, c in plan(4, 8, Sampling(steps=4), 4)] == [2, 2]
    with pytest.raises(RequestError, match="divides or multiplies the model's attention block 4"):
        plan(3, 6, Sampling(block_length=3), 4)
    model = Known()
    canvases = run(model, length=6, block_length=None, attention_block=4)
    assert canvases[-1].shape[1] == 12 and (canvases[-1] != MASK).all()
    assert [positions.start for _, positions in model.canvases] == [3] + [4] * 4 + [8] * 4


def test_it_stops_behind_the_block_in_which_the_answer_ends():
    canvases = run(Known(), ends=frozenset({5}))  # position 5 is in the first block, 3 … 6
    assert len(canvases) == 4 and (canvases[-1][0, 7:] == MASK).all()
    assert len(run(Known(), ends=frozenset({8}))) == 8
    assert len(run(Known(), ends=frozenset({18}))) == 8


def test_an_end_in_the_prompt_is_no_end():
    assert len(run(Known(), prompt=(5, 5, 5), ends=frozenset({5}), length=4)) == 4
    assert len(run(Known(), prompt=(18, 18, 18), ends=frozenset({18}))) == 8


def test_decoding_stops_at_the_first_of_several_ends():
    class Words:
        def decode(self, ids, skip_special_tokens):
            return " ".join(map(str, ids))

    assert decode(Words(), [1], [4, 5, 9, 6, 8], {8, 9}) == " 4 5"
    assert decode(Words(), [1], [4, 5], {8, 9}) == " 4 5"


class Editor:
    """Writes 7 everywhere while anything is hidden, then wants position p to be p, surely."""

    def __init__(self, settles=True):
        self.calls, self.settles = 0, settles

    def predict(self, ids, positions):
        self.calls += 1
        at = torch.arange(ids.shape[1])[positions]
        logits = torch.zeros(len(ids), len(at), VOCAB)
        done = bool((ids[:, positions] != MASK).all())
        for i, p in enumerate(at.tolist()):
            right = p if self.settles else (ids[0, p].item() + 1) % MASK
            logits[:, i, right if done else 7] = 20.0
        return logits


def test_written_tokens_are_edited_until_nothing_changes():
    model = Editor()
    last = run(model, length=4, editing=0.9)[-1]
    assert last[0].tolist() == [1, 2, 3, 3, 4, 5, 6]  # the prompt is left alone
    assert model.calls == 4 + 1 + 1  # four writes, one edit, one look that finds nothing
    restless = Editor(settles=False)
    run(restless, length=4, editing=0.9)
    assert restless.calls == 4 + EDITS
    assert run(Editor(), length=4)[-1][0, 3:].tolist() == [7] * 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"remasking": "confidense"}, "Did you mean 'confidence'"),
        ({"cache": "both"}, "Known: dual, exact, none, prefix"),
        ({"threshold": 1.5}, "threshold is 1.5; a probability"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"guidance": -1.0}, "guidance is -1; 0 or more"),
        ({"tresh": 0.5}, "Unknown setting 'tresh'"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(Exception, match=message) as error:
        checked(settings)
    assert isinstance(error.value, RequestError | KeyError)


def test_what_is_not_given_is_left_to_the_family():
    assert checked({"steps": None, "threshold": 0.9}) == {"threshold": 0.9}
