import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from quant_dllm.kernels import compile as compiler
from quant_dllm.kernels import native

pytest.importorskip("hatchling", reason="hatchling is not installed")
ROOT = Path(__file__).parents[2]


def wheel(folder, **environment):
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*.whl")), done.stdout + done.stderr


def test_a_wheel_carries_the_library_and_its_sources(tmp_path):
    try:
        compiler.find_compiler()
    except compiler.CompileError as error:
        pytest.skip(str(error))
    made, _ = wheel(tmp_path)
    assert "-py3-none-" in made.name and not made.name.endswith("-any.whl")
    with zipfile.ZipFile(made) as archive:
        names = archive.namelist()
        archive.extract("quant_dllm/kernels/lib/qdllm.so", tmp_path)
    assert "quant_dllm/kernels/csrc/base.c" in names
    native.open_library(tmp_path / "quant_dllm/kernels/lib/qdllm.so")


def test_without_a_compiler_a_wheel_is_built_all_the_same(tmp_path):
    made, said = wheel(tmp_path, CC="no-such-compiler")
    assert made.name.endswith("-py3-none-any.whl")
    assert "goes without its native library: no C compiler" in said
    with zipfile.ZipFile(made) as archive:
        assert not [name for name in archive.namelist() if name.endswith(".so")]
