"""Files of JSON lines: texts, and conversations that the chat template writes out."""

import gzip
import json

import pytest
import torch

from quant_dllm.calibration.corpus import documents, token_windows
from quant_dllm.errors import TextError
from quant_dllm.models.model import load_tokenizer
from quant_dllm.models.source import open_model

TEMPLATE = (
    "{% for turn in messages %}{% if turn.role == 'robot' %}{{ raise_exception('no robots') }}"
    "{% endif %}{{ turn.role }}: {{ turn.content }}<|endoftext|>{% endfor %}"
)
TURNS = [
    {"role": "user", "content": "Tell a story."},
    {"role": "assistant", "content": "Once upon a time there was a dog.\u2028He was big."},
]


@pytest.fixture
def tokenizer():
    found = load_tokenizer(open_model("tiny"))
    found.chat_template = TEMPLATE
    return found


def write(path, *lines):
    text = "\n".join(line if isinstance(line, str) else json.dumps(line, ensure_ascii=False)
                     for line in lines)  # fmt: skip
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.mark.parametrize("name", ["chats.jsonl", "chats.jsonl.gz"])
def test_a_line_is_a_document(tmp_path, tokenizer, name):
    path = write(tmp_path / name, {"text": "A dog ran."}, "", {"messages": TURNS})
    story, chat = documents(path, tokenizer)
    end = tokenizer.eos_token_id
    assert story == [*tokenizer("A dog ran.", add_special_tokens=False)["input_ids"], end]
    whole = tokenizer.apply_chat_template(TURNS, tokenize=False)
    assert chat == tokenizer(whole, add_special_tokens=False)["input_ids"]
    assert chat.count(end) == 2  # a turn each; the text's own end is not added to the template's
    assert "there was a dog" in tokenizer.decode(chat)


def test_windows_are_cut_out_of_conversations(tmp_path, tokenizer):
    path = write(tmp_path / "chats.jsonl", *({"messages": TURNS} for _ in range(20)))
    windows = token_windows(path, tokenizer, sequences=4, length=16, seed=0)
    stream = torch.tensor([token for doc in documents(path, tokenizer) for token in doc])
    cuts = {tuple(cut.tolist()) for cut in stream[: len(stream) // 16 * 16].view(-1, 16)}
    assert {tuple(window.tolist()) for window in windows} <= cuts


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{'text'", "line 2 is not JSON"),
        ({"mesages": TURNS}, "has 'mesages'. Did you mean 'messages'"),
        ({"text": 3}, "has 'text'"),
        ([1], "has no keys"),
        ({"messages": [{"role": "robot", "content": "beep"}]}, "chat template: no robots"),
        ({"messages": [3]}, "cannot be written by the chat template"),
    ],
)
def test_a_line_that_is_no_document(tmp_path, tokenizer, line, message):
    path = write(tmp_path / "chats.jsonl", {"text": "A dog ran."}, line)
    with pytest.raises(TextError, match=r"chats\.jsonl, line 2") as found:
        documents(path, tokenizer)
    assert message in str(found.value) and "\n" not in str(found.value)


def test_a_conversation_for_a_base_model(tmp_path, tokenizer):
    tokenizer.chat_template = None
    path = write(tmp_path / "chats.jsonl", {"messages": TURNS})
    with pytest.raises(TextError, match="has no chat template"):
        documents(path, tokenizer)
