"""Build the C library with units that this processor lacks, emulated instruction by instruction."""

from pathlib import Path

from quant_dllm.kernels import compile as compiler

HERE = Path(__file__).parent
UNITS = {
    "x86_64": {
        **compiler.UNITS["x86_64"],
        "avx512": ("-O1", "-DQD_SIMDE", "-include", str(HERE / "simde_avx512.h")),
        "amx": ("-O1", "-DQD_SIMDE", "-include", str(HERE / "simde_amx.h")),
        "neon": ("-O1", "-DQD_SIMDE", "-include", str(HERE / "simde_neon.h")),
        "grouped_avx512": ("-O1", "-DQD_SIMDE"),
    },
    "aarch64": {"neon": ()},
}
"""Flags of each unit; x86-64 gets both machines' units. At ``-O3`` SIMDe takes a minute."""


def build(path: Path, extra: tuple[str, ...] = ()) -> Path:
    """Compile all units for this machine; needs SIMDe (Debian: libsimde-dev) on x86-64.

    Raises:
        CompileError: No compiler, or no SIMDe.
    """
    compiler.build(
        path,
        compiler.find_compiler(),
        ("-DQD_EMULATE_NEON", *extra),
        UNITS.get(compiler.machine(), {}),
    )
    return path
