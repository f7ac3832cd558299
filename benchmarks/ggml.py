"""Time llama.cpp's two-bit formats on the shapes of `kernels.py`, in an environment of their own.

    python3 -m venv VENV && VENV/bin/pip install llama-cpp-python numpy
    VENV/bin/python benchmarks/ggml.py --out benchmarks/results/kernels-avx2.jsonl

Appends its records to those of `kernels.py`; both rotate through 192 MB of weights and use the same
clocks. The library is called through its C interface: one product a graph, weights of Gaussian
noise, quantization of the activations included.
"""

import argparse
import ctypes
import json
import mmap
import os
import resource
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

FORMATS = {"q2_K": 10, "tq2_0": 35}  # enum ggml_type
FLOAT32 = 0
SHAPES = ((4096, 4096), (4096, 12288), (12288, 4096))  # in, out
TOKENS = (1, 8, 32, 128, 512)
COLD, RUNS, WARM_UP, MOST_DROPPED = 192 << 20, 30, 3, 30
WORK = 256 << 20  # bytes for what a graph computes with
LARGE = 2 << 20  # bytes of a large page: all weights lie in such, as those of `kernels.py`
LIBC = ctypes.CDLL(None)


class InitParams(ctypes.Structure):
    """``struct ggml_init_params``."""

    _fields_ = [
        ("mem_size", ctypes.c_size_t),
        ("mem_buffer", ctypes.c_void_p),
        ("no_alloc", ctypes.c_bool),
    ]


class GGML:
    """The few functions of the library that a product wants."""

    def __init__(self, folder: Path):
        """Load the libraries that the package installed."""
        pointer, number, long = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
        wanted = {
            "ggml_init": (pointer, [InitParams]),
            "ggml_reset": (None, [pointer]),
            "ggml_free": (None, [pointer]),
            "ggml_new_tensor_2d": (pointer, [pointer, number, long, long]),
            "ggml_get_data": (pointer, [pointer]),
            "ggml_nbytes": (ctypes.c_size_t, [pointer]),
            "ggml_quantize_chunk": (
                ctypes.c_size_t, [number, pointer, pointer, long, long, long, pointer]
            ),
            "ggml_mul_mat": (pointer, [pointer, pointer, pointer]),
            "ggml_new_graph": (pointer, [pointer]),
            "ggml_build_forward_expand": (None, [pointer, pointer]),
            "ggml_graph_compute_with_ctx": (number, [pointer, pointer, number]),
        }  # fmt: skip
        names = ("libggml-base.so", "libggml-cpu.so", "libggml.so")
        found = [ctypes.CDLL(str(folder / n), ctypes.RTLD_GLOBAL) for n in names]
        for name, (result, arguments) in wanted.items():
            function = next(getattr(lib, name) for lib in found if hasattr(lib, name))
            function.restype, function.argtypes = result, arguments
            setattr(self, name.removeprefix("ggml_"), function)

    def context(self, size: int) -> int:
        """Make room for tensors."""
        return self.init(InitParams(size, None, False))


def copies(ggml: GGML, kind: int, inputs: int, out: int) -> tuple[int, list[int]]:
    """Quantize one weight, and copy it until the caches cannot hold it."""
    probe = ggml.context(1 << 30)
    first = ggml.new_tensor_2d(probe, kind, inputs, out)
    values = (0.02 * np.random.default_rng(0).standard_normal((out, inputs))).astype(np.float32)
    source = values.ctypes.data_as(ctypes.c_void_p)
    ggml.quantize_chunk(kind, source, ggml.get_data(first), 0, out, inputs, None)
    size = ggml.nbytes(first)
    count = -(-COLD // size)
    context = ggml.context(count * (size + 1024) + (1 << 20))
    made = [ggml.new_tensor_2d(context, kind, inputs, out) for _ in range(count)]
    begin, end = ggml.get_data(made[0]), ggml.get_data(made[-1]) + size
    begin, end = -(-begin // LARGE) * LARGE, end // LARGE * LARGE
    LIBC.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), mmap.MADV_HUGEPAGE)
    for tensor in made:
        ctypes.memmove(ggml.get_data(tensor), ggml.get_data(first), size)
    ggml.free(probe)
    return context, made


def timed(ggml: GGML, weights: list[int], inputs: int, tokens: int, threads: int) -> list[float]:
    """Time products with one weight after the other, in seconds."""
    clock = time.thread_time if threads == 1 else time.perf_counter
    context, work = ggml.context(WORK), ggml.context(WORK)
    x = ggml.new_tensor_2d(context, FLOAT32, inputs, tokens)
    values = np.random.default_rng(1).standard_normal((tokens, inputs)).astype(np.float32)
    ctypes.memmove(ggml.get_data(x), values.ctypes.data, values.nbytes)
    seconds: list[float] = []
    turn = dropped = 0
    graphs = [ggml.context(64 << 20) for _ in range(2)]
    while len(seconds) < RUNS:
        room = graphs[turn % 2]
        ggml.reset(room)
        ggml.reset(work)
        graph = ggml.new_graph(room)
        ggml.build_forward_expand(graph, ggml.mul_mat(room, weights[turn % len(weights)], x))
        interrupted, began = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw, clock()
        ggml.graph_compute_with_ctx(work, graph, threads)
        taken = clock() - began
        same = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw == interrupted
        clean = threads == 1 or same or dropped >= MOST_DROPPED
        dropped += not clean
        if turn >= WARM_UP and clean:
            seconds.append(taken)
        turn += 1
    for used in (context, work, *graphs):
        ggml.free(used)
    return seconds


def records(formats: list[str]) -> Iterator[dict[str, Any]]:
    """Time formats, all shapes, threads and token counts."""
    ggml = GGML(Path(llama_cpp.__file__).parent / "lib")
    for name in formats:
        for inputs, out in SHAPES:
            context, weights = copies(ggml, FORMATS[name], inputs, out)
            for threads in (1, 2):
                for tokens in TOKENS:
                    seconds = timed(ggml, weights, inputs, tokens, threads)
                    low, middle, high = statistics.quantiles(seconds, n=4, method="inclusive")
                    yield {
                        "what": "binary_linear", "backend": f"llama.cpp {name}", "order": 0,
                        "in": inputs, "out": out, "tokens": tokens, "threads": threads,
                        "clock": "thread" if threads == 1 else "wall",
                        "median_us": round(middle * 1e6, 2), "iqr_us": round((high - low) * 1e6, 2),
                        "min_us": round(min(seconds) * 1e6, 2), "runs": len(seconds),
                        "date": time.strftime("%Y-%m-%d"),
                        "llama_cpp_python": llama_cpp.__version__,
                    }  # fmt: skip
            ggml.free(context)


def main() -> None:
    """Append all records."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--format", action="append", choices=FORMATS, help="only these")
    options = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    with options.out.open("a") as file:
        for record in records(options.format or list(FORMATS)):
            file.write(json.dumps(record) + "\n")
            file.flush()
            print(f"{record['backend']} {record['in']}→{record['out']} {record['threads']} threads "
                  f"{record['tokens']} tokens: {record['median_us'] / 1e3:.3f} ms")  # fmt: skip


if __name__ == "__main__":
    main()
