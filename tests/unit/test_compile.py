import logging
import stat

import pytest
import torch

from quant_dllm.kernels import compile as compiler
from quant_dllm.kernels import dispatch, native, reference
from quant_dllm.kernels.compile import CompileError
from quant_dllm.weights.random import random_weight


def script(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.fixture
def nothing_prebuilt(monkeypatch, tmp_path):
    monkeypatch.setattr(compiler, "PREBUILT", tmp_path / "none")


def test_a_library_is_made_once_and_found_again(nothing_prebuilt, tmp_path, monkeypatch):
    made = []

    def build(path, found):
        made.append(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

    monkeypatch.setattr(compiler, "find_compiler", lambda: "true")
    monkeypatch.setattr(compiler, "build", build)
    monkeypatch.setenv("QUANT_DLLM_CACHE", str(tmp_path / "cache"))
    assert compiler.find() == compiler.find() == made[0]
    assert len(made) == 1 and made[0].parent == tmp_path / "cache"


def test_another_compiler_or_flag_makes_another_library(tmp_path, monkeypatch):
    one, two = (script(tmp_path / name, f"echo {name}") for name in ("one", "two"))
    assert compiler.key(one) != compiler.key(two)
    before = compiler.key(one)
    monkeypatch.setattr(compiler, "COMMON", ("-O1",))
    assert compiler.key(one) != before


def test_the_library_of_the_package_comes_first(tmp_path, monkeypatch):
    monkeypatch.setattr(compiler, "PREBUILT", tmp_path / "qdllm.so")
    (tmp_path / "qdllm.so").touch()
    monkeypatch.setenv("CC", "no-such-compiler")
    assert compiler.find() == tmp_path / "qdllm.so"


def test_no_compiler_is_a_reason(nothing_prebuilt, monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(CompileError, match=r"no C compiler .*no-such-compiler"):
        compiler.find()


def test_what_a_compiler_says_is_a_reason_and_nothing_half_made_is_left(tmp_path):
    failing = script(
        tmp_path / "cc", "echo 'x.c: warning: w' >&2; echo 'x.c: error: e' >&2; exit 1"
    )
    with pytest.raises(CompileError, match=r"cc failed: x\.c: error: e"):
        compiler.build(tmp_path / "made" / "qdllm.so", failing)
    assert not list((tmp_path / "made").iterdir())


def test_a_cache_that_cannot_be_written_is_a_reason(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CompileError, match="cannot be written"):
        compiler.build(tmp_path / "file" / "qdllm.so", "true")


def test_a_file_that_is_no_library_is_a_reason(tmp_path):
    (tmp_path / "qdllm.so").write_bytes(b"no library")
    with pytest.raises(CompileError, match="cannot be loaded"):
        native.open_library(tmp_path / "qdllm.so")


def test_a_prebuilt_library_that_does_not_fit_is_made_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(compiler, "PREBUILT", tmp_path / "qdllm.so")
    (tmp_path / "qdllm.so").write_bytes(b"of another machine")
    monkeypatch.setattr(compiler, "made", lambda: tmp_path / "made.so")
    monkeypatch.setattr(native, "open_library", opened := Opened())
    native.library.cache_clear()
    assert native.library() == tmp_path / "made.so"
    native.library.cache_clear()
    opened.fits = ()
    with pytest.raises(CompileError, match=r"qdllm\.so does not fit; .*made\.so does not fit"):
        native.library()
    native.library.cache_clear()


class Opened:
    fits = ("made.so",)

    def __call__(self, path):
        if path.name not in self.fits:
            raise CompileError(f"{path} does not fit")
        return path


def test_without_a_library_the_reference_multiplies_and_says_so_once(
    kernels, nothing_prebuilt, monkeypatch, caplog
):
    for cached in (native.library, native.missing, dispatch._warn_once):
        cached.cache_clear()
    monkeypatch.setenv("CC", "no-such-compiler")
    weight, x = random_weight(16, 32, 32, [2]), torch.randn(3, 32)
    with caplog.at_level(logging.WARNING, "quant_dllm"):
        y = [dispatch.linear(x, weight) for _ in range(2)]
    assert torch.equal(y[0], reference.linear(x, weight))
    assert len(caplog.records) == 1 and "no-such-compiler" in caplog.text
    for cached in (native.library, native.missing, dispatch._warn_once):
        cached.cache_clear()
