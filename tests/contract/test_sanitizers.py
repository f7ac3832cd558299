import subprocess

import pytest

from quant_dllm.kernels.compile import CompileError
from tests.native import sanitized


def test_no_byte_too_far_and_nothing_undefined(tmp_path):
    program = tmp_path / "harness"
    try:
        sanitized.build(program, "address,undefined")
    except CompileError as error:
        pytest.skip(f"no sanitizer: {error}")
    done = subprocess.run([str(program)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "generic" in done.stdout.split()
