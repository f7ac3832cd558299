"""llmcompressor's GPTQ in a process of its own, for a measurement beside ours.

It lives in another environment, for it is no dependency of this project and has other versions of
what we depend on. The process loads the layer once; then it works when it is told to.

    one line in:  run          one line out:  seconds
    one line in:  save PATH    one line out:  done, the rounded weight is there
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file


class PublicGPTQ:
    """The other process, as this one sees it.

    Args:
        python: Interpreter of the environment that has llmcompressor.
        weight: W, [out, in].
        hessian: H, [in, in], not damped.
        bits: Bits of a code.
        group_size: Input channels of a group.
    """

    def __init__(
        self, python: str, weight: torch.Tensor, hessian: torch.Tensor, bits: int, group_size: int
    ):
        self._folder = tempfile.TemporaryDirectory()
        settings = {"bits": bits, "group_size": group_size, "threads": torch.get_num_threads()}
        path = Path(self._folder.name) / "layer.safetensors"
        save_file({"weight": weight.contiguous(), "hessian": hessian.contiguous()}, path)
        kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        kept["PYTHONSAFEPATH"] = "1"  # files here have the names of packages: kernels.py
        self._process = subprocess.Popen(
            [python, __file__, str(path), json.dumps(settings)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=kept,
        )  # fmt: skip
        self.version = self._hear()

    def __enter__(self) -> "PublicGPTQ":
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Let the process end."""
        self._process.communicate()
        self._folder.cleanup()

    def seconds(self) -> float:
        """Quantize once; return how long it took there."""
        return float(self._ask("run"))

    def values(self) -> torch.Tensor:
        """Return the weight as it was rounded last, [out, in]."""
        path = Path(self._folder.name) / "rounded.safetensors"
        self._ask(f"save {path}")
        return load_file(path)["weight"]

    def _ask(self, line: str) -> str:
        assert self._process.stdin
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return self._hear()

    def _hear(self) -> str:
        assert self._process.stdout
        line = self._process.stdout.readline().strip()
        if not line:
            sys.exit("The public GPTQ ended early; see above. Is llmcompressor installed there?")
        return line


def serve(path: str, settings: str) -> None:
    """Do what the lines on standard input say."""
    answers, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no answer
    from importlib.metadata import version

    import llmcompressor.modifiers.gptq.gptq_quantize  # noqa: F401  loaded before any clock runs

    layer: dict[str, Any] = load_file(path) | json.loads(settings)
    torch.set_num_threads(layer["threads"])
    print(f"llmcompressor {version('llmcompressor')}", file=answers, flush=True)
    rounded = layer["weight"]
    for line in sys.stdin:
        word, _, rest = line.strip().partition(" ")
        if word == "run":
            began = time.perf_counter()
            rounded = quantize(layer)
            print(time.perf_counter() - began, file=answers, flush=True)
        elif word == "save":
            save_file({"weight": rounded.contiguous()}, rest)
            print("done", file=answers, flush=True)


def quantize(layer: dict[str, Any]) -> torch.Tensor:
    """Fit asymmetric groups from minimum to maximum, and run their GPTQ."""
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.utils import calculate_qparams
    from llmcompressor.modifiers.gptq.gptq_quantize import quantize_weight

    weight, size = layer["weight"], layer["group_size"]
    args = QuantizationArgs(
        num_bits=layer["bits"], symmetric=False, strategy="group", group_size=size
    )
    groups = weight.unflatten(1, (-1, size))
    scale, zero_point = calculate_qparams(groups.amin(-1), groups.amax(-1), args)
    rounded, _, _ = quantize_weight(
        weight[None].clone(), layer["hessian"][None].clone(),  # it writes into both
        scale[None], zero_point[None], None, args, blocksize=128, percdamp=0.01,
    )  # fmt: skip
    return rounded[0]


if __name__ == "__main__":
    with torch.no_grad():
        serve(*sys.argv[1:])
