"""Caches and guidance: exact ones give what computing everything anew gives."""

import pytest
import torch

import quant_dllm
from quant_dllm.errors import RequestError
from quant_dllm.generation.denoisers import Guided, OuterPositions, build_denoiser
from quant_dllm.generation.masked import denoise
from quant_dllm.models.load import load
from quant_dllm.models.sampling import Sampling
from quant_dllm.models.source import FAMILIES
from tests.families import EXAMPLES, MASK

BLOCK_CAUSAL = ("fast-dllm", "sdar", "a2d-qwen3")  # blocks of 16 shifted, of 4, of 8
PROMPT = torch.arange(5, 24)[None]  # 19 tokens: no multiple of any block


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    found = {}
    for name in (*BLOCK_CAUSAL, "dream", "llada", "modernbert"):
        family = FAMILIES.get(name)
        example = EXAMPLES[name](tmp_path_factory.mktemp(name) / "model", family)
        found[name] = load(example.folder, attention_block=example.attention_block)
    return found


def steps(model, sampling, prompt=PROMPT, length=24):
    block = model.source.config.attention_block
    denoiser = build_denoiser(model, sampling, prompt.shape[1], 64)
    seen = []

    class Watched:
        def predict(self, ids, positions):
            logits = denoiser.predict(ids, positions)
            seen.append((ids.clone(), positions, logits.clone()))
            return logits

    canvases = list(
        denoise(
            Watched(), prompt, length=length, sampling=sampling, seed=0,
            mask_token_id=model.mask_token_id, attention_block=block,
        )
    )  # fmt: skip
    return canvases, seen, denoiser


@pytest.mark.parametrize("name", BLOCK_CAUSAL)
@pytest.mark.parametrize(
    "settings", [{}, {"guidance": 1.5}, {"editing": 0.05}, {"block_length": 2}]
)
def test_kept_blocks_change_nothing(models, name, settings):
    model = models[name]
    plain, _, anew = steps(model, Sampling(**settings))
    cached, seen, kept = steps(model, Sampling(cache="exact", **settings))
    assert len(plain) == len(cached) and anew.calls == kept.calls
    assert all(torch.equal(a, b) for a, b in zip(plain, cached, strict=True))
    assert kept.positions < anew.positions
    if "guidance" not in settings:
        for ids, positions, logits in seen:  # logits, not tokens only
            whole = model.predict(ids, positions)
            assert torch.allclose(logits, whole, atol=2e-5)


def test_a_kept_block_costs_its_own_positions_and_the_one_before(models):
    _, seen, kept = steps(models["sdar"], Sampling(cache="exact"), length=8)
    # prompt of 19 and one position of the block 16 … 19: 20 at first; then 4 a call, 8 in the
    # first call of a block
    assert len(seen) == 1 + 4 + 4 and kept.positions == 20 + (8 + 3 * 4) + (8 + 3 * 4)


@pytest.mark.parametrize("name", ["llada", "dream"])
@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_the_approximate_caches_are_exact_at_the_first_step_of_a_block(models, name, cache):
    model = models[name]
    _, seen, kept = steps(model, Sampling(cache=cache, block_length=8))
    assert isinstance(kept, OuterPositions)
    for i, (ids, positions, logits) in enumerate(seen):
        whole = model.predict(ids, positions)
        if i % 8 == 0:
            assert torch.allclose(logits, whole, atol=1e-5)
        else:
            assert not torch.allclose(logits, whole, atol=1e-5)
    anew = len(seen) * (19 + 24)
    assert kept.positions < anew
    front = 1 if name == "dream" else 0  # the row that predicts the block's first token
    dual = sum(43 + 7 * (8 + front) for _ in range(3))
    prefix = sum(43 + 7 * (43 - start + front) for start in (19, 27, 35))
    assert kept.positions == (dual if cache == "dual" else prefix)


def test_the_prefix_cache_is_exact_where_nothing_was_written_since(models):
    """Keys in front of the block depend on the canvas only: unchanged, they are right."""
    model, ids = models["llada"], PROMPT
    canvas = torch.cat((ids, torch.full((1, 8), model.mask_token_id)), dim=1)
    for cache in ("prefix", "dual"):
        kept = build_denoiser(model, Sampling(cache=cache), 19, 27)
        first = kept.predict(canvas, slice(19, 27))
        assert torch.allclose(kept.predict(canvas, slice(19, 27)), first, atol=1e-5)


def test_guidance_moves_the_logits_by_what_the_prompt_changes(models):
    model = models["llada"]
    canvas = torch.cat((PROMPT, torch.full((1, 8), model.mask_token_id)), dim=1)
    blind = canvas.clone()
    blind[:, :19] = model.mask_token_id
    block = slice(19, 27)
    guided = build_denoiser(model, Sampling(guidance=2.0), 19, 27)
    assert isinstance(guided, Guided)
    seeing, unseeing = model.predict(canvas, block), model.predict(blind, block)
    expected = unseeing + 3.0 * (seeing - unseeing)
    assert torch.allclose(guided.predict(canvas, block), expected, atol=1e-4)
    assert guided.calls == 2 and guided.positions == 54


@pytest.mark.parametrize(
    ("name", "cache", "advice"),
    [
        ("llada", "exact", "none, prefix or dual"),
        ("sdar", "dual", "none or exact"),
        ("modernbert", "prefix", "Choose none"),
    ],
)
def test_a_cache_that_does_not_fit_is_refused(models, name, cache, advice):
    with pytest.raises(RequestError, match=advice):
        quant_dllm.generate(models[name], "w5 w6", length=8, cache=cache)


def test_the_familys_settings_are_the_defaults(models):
    story = quant_dllm.generate(models["sdar"], "w5 w6 w7", length=8)
    assert story.sampling == models["sdar"].family.sampling
    assert story.sampling.cache == "exact" and story.sampling.threshold == 0.85
    fixed = quant_dllm.generate(models["sdar"], "w5 w6 w7", length=8, threshold=1.0, stop=False)
    assert fixed.calls == 1 + 4 + 4  # one place is left in the prompt's block, then two blocks
    assert len(fixed.token_ids) == 8
    whole = quant_dllm.generate(models["llada"], "w5 w6 w7", length=20, stop=False)
    assert whole.sampling.block_length is None and whole.calls == 20  # 32 does not divide it


def test_every_step_is_shown(models):
    shown = []
    model = models["llada"]
    story = quant_dllm.generate(
        model, "w5 w6 w7", length=16, block_length=8, stop=False, on_step=shown.append
    )
    hidden = [(canvas == model.mask_token_id).sum().item() for canvas in shown]
    assert hidden == list(range(15, -1, -1)) and len(shown) == story.calls
    assert shown[-1][0, 3:].tolist() == story.token_ids


def test_an_answer_that_ends_is_cut(models, monkeypatch):
    model = models["llada"]
    whole = quant_dllm.generate(model, "w5 w6 w7", length=16, block_length=8, stop=False)
    end = whole.token_ids[5]
    monkeypatch.setitem(model.__dict__, "end_token_ids", frozenset({end}))
    cut = quant_dllm.generate(model, "w5 w6 w7", length=16, block_length=8)
    at = whole.token_ids.index(end)
    assert cut.calls == 8 and cut.token_ids == whole.token_ids[:8]
    assert cut.text.split() == [f"w{t}" for t in whole.token_ids[:at]]


def test_a_chat_prompt_follows_the_template(models):
    model = models["llada"]
    with pytest.raises(RequestError, match="has no chat template"):
        quant_dllm.generate(model, "w5 w6", length=8, chat=True)
    model.tokenizer.chat_template = (
        "{% for m in messages %}w40 {{ m.content }} {% endfor %}"
        "{% if add_generation_prompt %}w41{% endif %}"
    )
    try:
        story = quant_dllm.generate(model, "w5 w6", length=8, chat=True)
    finally:
        model.tokenizer.chat_template = None
    assert story.prompt == "w40 w5 w6 w41"
    plain = quant_dllm.generate(model, "w40 w5 w6 w41", length=8)
    assert story.token_ids == plain.token_ids


def test_the_answer_ends_at_the_turns_end_too(models):
    assert models["dream"].end_token_ids == {2, 4}  # <end>, <|im_end|>
    assert models["modernbert"].end_token_ids == {2}
    assert models["sdar"].mask_token_id == MASK
