"""Build and run `harness.c` with all units under a sanitizer.

python -m tests.native.sanitized address,undefined
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from quant_dllm.kernels import compile as compiler
from tests.native.emulated import HERE, UNITS


def build(path: Path, kinds: str) -> None:
    """Make the program; emulated units too, where SIMDe is installed.

    Raises:
        CompileError: No compiler, or one that fails.
    """
    cc = compiler.find_compiler()
    flags = ("-O1", "-g", "-fopenmp", f"-fsanitize={kinds}", "-fno-sanitize-recover=all")
    flags += ("-DQD_EMULATE_NEON", f"-I{compiler.SOURCES}")
    steps = compiler.commands(path, cc, flags, UNITS.get(compiler.machine(), {}))
    linking = [*(word for word in steps[-1] if word != "-shared"), str(HERE / "harness.c"), "-lm"]
    compiler.run([*steps[:-1], linking])


def main(kinds: str) -> int:
    """Build, run, and return the exit status of the program."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "harness"
        build(program, kinds)
        return subprocess.run([str(program)]).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
