"""Tokenizers of folders without ``tokenizer.json``: Dream has Qwen's files and a renamed class."""

import json

import pytest
from tokenizers import ByteLevelBPETokenizer
from transformers import AutoTokenizer

from quant_dllm.models.model import load_tokenizer
from quant_dllm.models.source import FAMILIES, open_model
from tests.families import EXAMPLES


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dream") / "model"
    EXAMPLES["dream"](folder, FAMILIES.get("dream"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    made = ByteLevelBPETokenizer()
    made.train_from_iterator(["the cat sat on the mat"] * 20, vocab_size=280)
    made.save_model(str(folder))
    tokens = {"280": {"content": "<|mask|>", "special": True}}
    config = {
        "tokenizer_class": "DreamTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]},
        "added_tokens_decoder": tokens,
        "eos_token": "<|mask|>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_it_loads_without_the_folders_code(folder):
    ours = load_tokenizer(open_model(folder))
    theirs = AutoTokenizer.from_pretrained(folder)
    assert type(theirs).__name__ == "DreamTokenizer"
    text = "the cat<|mask|>"
    ids = ours(text, add_special_tokens=False)["input_ids"]
    assert ids == theirs(text, add_special_tokens=False)["input_ids"]
    assert ids[-1] == ours.get_vocab()["<|mask|>"] and ours.decode(ids[:-1]) == "the cat"
