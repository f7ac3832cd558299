"""Llama denoisers against transformers' Llama with a mask that hides nothing."""

import json

import pytest
import torch

from quant_dllm.errors import ModelError
from quant_dllm.models.load import load


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def llama(request, tmp_path_factory):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=48, vocab_size=64, max_position_embeddings=64, rms_norm_eps=1e-5,
        tie_word_embeddings=request.param, attn_implementation="eager",
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    folder = tmp_path_factory.mktemp("llama") / "model"
    model.save_pretrained(folder)
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | {"mask_token_id": 63}))
    return model, folder


def test_logits_equal_those_of_transformers(llama):
    model, folder = llama
    ids = torch.randint(64, (2, 20), generator=torch.Generator().manual_seed(1))
    everything = torch.zeros(2, 1, 20, 20)  # an additive mask that hides nothing
    with torch.no_grad():
        expected = model(ids, attention_mask=everything).logits
    assert (load(folder)(ids).logits - expected).abs().max() <= 1e-4


def test_a_shifted_model_is_read_one_row_earlier(llama):
    model = load(llama[1])
    ids = torch.randint(64, (2, 20), generator=torch.Generator().manual_seed(1))
    rows = model(ids).logits
    own = torch.cat((rows[:, :1], rows[:, :-1]), dim=1)  # position i from row i − 1, 0 from row 0
    assert torch.allclose(model.predict(ids, slice(0, 20)), own, atol=1e-5)
    assert torch.allclose(model.predict(ids, slice(7, 12)), own[:, 7:12], atol=1e-5)
    where = torch.rand(2, 20, generator=torch.Generator().manual_seed(0)) < 0.4
    where[0, 0] = True
    assert torch.allclose(model.logits_at(ids, where, ids), own[where], atol=1e-5)


def test_an_autoregressive_llama_is_refused(llama):
    folder = llama[1]
    raw = json.loads((folder / "config.json").read_text())
    del raw["mask_token_id"]
    (folder / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ModelError, match="names no mask_token_id"):
        load(folder)
    (folder / "config.json").write_text(json.dumps(raw | {"mask_token_id": 63}))
