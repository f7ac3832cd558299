"""What a model is taken for, and what is proposed for one that nobody has described."""

import json

import pytest
import transformers

from quant_dllm.cli.main import main
from quant_dllm.models.family import ModelFamily
from tests.families import WIDE, Oracle, edit


def stranger(folder, network, **options):
    """Write a folder of an architecture that is not registered, over transformers' class."""
    config = getattr(transformers, f"{network}Config")(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=40, vocab_size=300, max_position_embeddings=64, rms_norm_eps=1e-6,
        rope_theta=5e5, **options,
    )  # fmt: skip
    config.save_pretrained(folder)
    edit(folder, architectures=["StrangerLM"])


@pytest.mark.parametrize(
    ("network", "options", "changes"),
    [
        ("Qwen3", WIDE | {"tie_word_embeddings": True}, {"tied_head": True, "qk_norm": True}),
        ("Qwen2", {}, {"qkv_bias": True}),
        ("Llama", {}, {}),
    ],
)
def test_a_family_is_proposed_that_is_the_model(capsys, tmp_path, network, options, changes):
    stranger(tmp_path, network, **options)
    assert main(["doctor", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["difference"] <= 1e-4
    assert found["attention_block"] == 1  # transformers' classes are causal
    made: dict = {}
    exec(found["file"], made)
    assert isinstance(made["FAMILY"], ModelFamily)
    config = made["config"](json.loads((tmp_path / "config.json").read_text()))
    assert (config.width, config.blocks, config.vocab, config.rope_theta) == (32, 3, 300, 5e5)
    assert {key: getattr(config, key) for key in changes} == changes
    assert (
        made["FAMILY"].upstream("blocks.2.mlp.down.weight") == "model.layers.2.mlp.down_proj.weight"
    )


def test_the_file_is_printed_with_the_verdict(capsys, tmp_path):
    stranger(tmp_path, "Llama")
    assert main(["doctor", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert 'architectures=("StrangerLM",)' in out.replace("'", '"')
    assert "they are one network" in out


def test_a_network_of_another_kind_is_refused(capsys, tmp_path):
    config = transformers.BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
                                     intermediate_size=40, vocab_size=300)  # fmt: skip
    config.save_pretrained(tmp_path)
    edit(tmp_path, architectures=["StrangerLM"])
    assert main(["doctor", str(tmp_path)]) == 2
    assert "wanted" in capsys.readouterr().err


def test_a_model_without_code_is_refused(capsys, tmp_path):
    (tmp_path / "config.json").write_text('{"architectures": ["X"], "model_type": "nobodys"}')
    assert main(["doctor", str(tmp_path)]) == 2
    assert "transformers cannot run it" in capsys.readouterr().err


def test_a_known_model_is_explained(capsys, tmp_path):
    from quant_dllm.models.source import FAMILIES

    family = FAMILIES.get("fast-dllm")
    Oracle("Qwen2", 16, config={"bd_size": 16})(tmp_path / "m", family)
    assert main(["doctor", str(tmp_path / "m"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["model"]
    assert found["attention"] == "block-causal, 16 tokens"
    assert "shifted" in found["logits predict"]
    assert found["mask token"].startswith("60 (|<MASK>|")
