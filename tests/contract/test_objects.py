"""What the compiler made: no object may hold instructions that its processors lack."""

import re
import shutil
import subprocess

import pytest

from quant_dllm.kernels import compile as compiler

UNITS = {"base": (), "layout": (), "generic": (), **compiler.UNITS["x86_64"]}
FOREIGN = {  # registers that stand for instructions a unit must not use
    "base": r"%[yz]mm",
    "layout": r"%[yz]mm",
    "generic": r"%[yz]mm",
    "avx2": r"%zmm|%[xy]mm(1[6-9]|[23]\d)|%k[0-7]",
}


@pytest.mark.skipif(
    compiler.machine() != "x86_64" or not shutil.which("objdump"),
    reason="x86-64 objects and objdump are wanted",
)
@pytest.mark.parametrize("unit", FOREIGN)
def test_no_object_uses_instructions_of_a_newer_processor(unit, tmp_path):
    try:
        cc = compiler.find_compiler()
    except compiler.CompileError as error:
        pytest.skip(str(error))
    steps = compiler.commands(tmp_path / "qdllm.so", cc, (), {unit: UNITS[unit]})
    compiler.run([step for step in steps if step[-1].endswith(f"{unit}.o")][:1])
    dump = ["objdump", "-d", "--no-show-raw-insn", str(tmp_path / f"{unit}.o")]
    code = subprocess.run(dump, capture_output=True, text=True, check=True).stdout
    assert "ret" in code
    assert not re.findall(rf".*(?:{FOREIGN[unit]}).*", code)[:3]
