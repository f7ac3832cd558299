"""What the instructions of a table kernel allow: look-ups a second of their loop alone."""

import ctypes
import subprocess
import tempfile
import time
from pathlib import Path

import torch

from quant_dllm.kernels import compile as compiler

FLAGS = {unit: compiler.UNITS["x86_64"][unit] for unit in ("avx2", "avx512")}
RUNS, ROUNDS = 30, 200_000


def lookups_per_second(unit: str) -> float:
    """Compile the loop for a unit and return the best of its runs."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ceiling.so"
        source = Path(__file__).with_name("ceiling.c")
        command = [compiler.find_compiler(), "-O3", "-shared", "-fPIC", *FLAGS[unit]]
        subprocess.run([*command, str(source), "-o", str(path)], check=True)
        loop = ctypes.CDLL(str(path)).lookups
    loop.restype, loop.argtypes = ctypes.c_double, [ctypes.c_long, ctypes.c_void_p]
    data = torch.randint(256, (4096,), dtype=torch.uint8)
    rates = []
    for _ in range(RUNS):
        began = time.thread_time()
        count = loop(ROUNDS, data.data_ptr())
        rates.append(count / (time.thread_time() - began))
    return max(rates)
