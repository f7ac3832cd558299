import gzip
from collections import Counter

import pytest
import torch

from quant_dllm.calibration.corpus import fingerprint, token_windows
from quant_dllm.errors import TextError
from quant_dllm.models.bundled import bundled_text
from quant_dllm.models.model import load_tokenizer
from quant_dllm.models.source import open_model


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(open_model("tiny"))


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt.gz"
    stories = [f"Once upon a time, there was a dog number {'very ' * n}big." for n in range(40)]
    path.write_bytes(gzip.compress("\n<|endoftext|>\n".join(stories).encode()))
    return path


def test_windows_are_cut_out_of_the_stream_and_do_not_overlap(text, tokenizer):
    windows = token_windows(text, tokenizer, sequences=8, length=32, seed=0)
    assert windows.shape == (8, 32)
    raw = gzip.decompress(text.read_bytes()).decode().split("<|endoftext|>")
    stream = [t for doc in raw for t in (*tokenizer(doc.strip())["input_ids"], 1)]
    cuts = Counter(tuple(stream[i : i + 32]) for i in range(0, len(stream) - 31, 32))
    assert Counter(tuple(w.tolist()) for w in windows) <= cuts  # each cut taken at most once
    assert (windows == tokenizer.eos_token_id).any()


def test_a_window_of_a_long_document_lies_within_it(text, tokenizer):
    windows = token_windows(text, tokenizer, sequences=30, length=24, rule="long-documents", seed=0)
    assert windows.shape == (30, 24)
    inside = windows[:, :-1]
    assert not (inside == tokenizer.eos_token_id).any()


def test_a_seed_chooses(text, tokenizer):
    cut = [token_windows(text, tokenizer, sequences=4, length=16, seed=s) for s in (0, 0, 1)]
    assert torch.equal(cut[0], cut[1]) and not torch.equal(cut[0], cut[2])
    assert fingerprint(cut[0]) == fingerprint(cut[1]) != fingerprint(cut[2])


def test_a_short_text_says_what_it_would_give(text, tokenizer):
    with pytest.raises(TextError, match=r"windows of 64; 900 are wanted"):
        token_windows(text, tokenizer, sequences=900, length=64)
    with pytest.raises(TextError, match="no document of more than 500 tokens"):
        token_windows(text, tokenizer, sequences=2, length=500, rule="long-documents")


def test_what_is_no_text_is_refused(tmp_path, tokenizer):
    binary = tmp_path / "noise.txt"
    binary.write_bytes(b"\xff\xfe\x00\x80" * 9)
    broken = tmp_path / "broken.gz"
    broken.write_bytes(b"no gzip")
    for path, message in ((binary, "not UTF-8"), (broken, "cannot be read"),
                          (tmp_path / "nowhere", "cannot be read")):  # fmt: skip
        with pytest.raises(TextError, match=message):
            token_windows(path, tokenizer, sequences=1, length=4)


def test_the_bundled_splits_share_no_story():
    source = open_model("tiny")
    splits = {}
    for name in ("calibration", "validation", "heldout"):
        stories = gzip.decompress(bundled_text(source, name).read_bytes()).decode()
        splits[name] = {s.strip() for s in stories.split("<|endoftext|>") if s.strip()}
    assert all(len(stories) > 100 for stories in splits.values())
    assert not splits["calibration"] & splits["heldout"]
    assert not splits["calibration"] & splits["validation"]
    assert not splits["validation"] & splits["heldout"]
