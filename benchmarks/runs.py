"""Quantizations to be killed: a small model, runs in forked processes, and what they left.

A run is a process that was forked off this one, so that nothing is imported anew.
"""

import contextlib
import hashlib
import json
import os
import shutil
import socket
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from quant_dllm.calibration.corpus import read_text
from quant_dllm.errors import QuantDLLMError
from quant_dllm.models.backbone import Backbone
from quant_dllm.models.llada import FAMILY
from quant_dllm.models.source import locate
from quant_dllm.pipeline.job import Job
from quant_dllm.pipeline.journal import folder_of
from quant_dllm.pipeline.quantize import quantize
from quant_dllm.recipe import Recipe

TIMED = ("quant_dllm.json", "report.html", "README.md", "events.jsonl")
SETTINGS = {
    "calibration.sequences": 6,
    "calibration.length": 16,
    "precision.block_size": 8,
}
ROUNDED = "ladder-1-rounding"
OURS = {
    "precision.ratio": 0.34, "quantizer.rounds": 1, "quantizer.refinements": 0,
    "outside": "grouped", "outside.bits": 4, "outside.finer": 0.05, "outside.behind": True,
    "outside.drift": 1.0,
}  # fmt: skip
"""What `SETTINGS` are joined by for `ROUNDED`."""
TEXT = "calibration.txt"
CONFIG = {
    "architectures": ["LLaDAModelLM"], "model_type": "llada", "d_model": 24, "n_layers": 2,
    "n_heads": 2, "n_kv_heads": 2, "mlp_hidden_size": 32, "max_sequence_length": 64,
    "rope_theta": 10000.0, "rms_norm_eps": 1e-5,
}  # fmt: skip
DONE, REFUSED, STOPPED = 0, 2, 75


def make_model(folder: Path) -> Path:
    """Write a random LLaDA of two small blocks with the bundled tokenizer."""
    tiny = locate("tiny")
    vocab = json.loads((tiny / "config.json").read_text())["vocab_size"]
    config = CONFIG | {"vocab_size": vocab, "embedding_size": vocab, "mask_token_id": vocab - 1}
    torch.manual_seed(0)
    model = Backbone(FAMILY.config(config))
    folder.mkdir(parents=True)
    tensors = {FAMILY.upstream(n): t.contiguous() for n, t in model.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny / name, folder / name)
    text = read_text(tiny / "calibration.txt.gz")[:20_000]
    (folder / TEXT).write_text(text)
    return folder


def settings(recipe: str = ROUNDED) -> dict[str, Any]:
    """Return what is set to make a run short."""
    return SETTINGS | (OURS if recipe == ROUNDED else {})


def warm_up(model: Path) -> None:
    """Import and load here what every run would."""
    recipe = Recipe.load(ROUNDED).override(settings())
    Job.prepare(
        model, recipe, model / "none", text=model / TEXT, seed=0, device="cpu", mask_token_id=None
    )


def run(
    model: Path,
    out: Path,
    before: Callable[[], None] = lambda: None,
    recipe: str = ROUNDED,
) -> None:
    """Quantize, or go on."""
    before()
    quantize(model, out, recipe, settings=settings(recipe), calibration=model / TEXT)


def forked(work: Callable[[], Any], said: Path | None = None) -> int:
    """Start a process that does some work; its exit status is that of the command line."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        work()
        status = DONE
    except QuantDLLMError as error:
        if said:
            said.write_text(str(error))
        status = STOPPED if type(error).__name__ in ("Interrupted", "PeerLost") else REFUSED
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def wait(child: int) -> int:
    """Return the exit status, or minus the signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def forked_ranks(count: int, work: Callable[[], Any]) -> list[int]:
    """Do some work in so many processes that find each other; return their exit statuses."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(count)}

    def joined(rank: int) -> None:
        os.environ |= address | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        work()

    children = [forked(lambda rank=rank: joined(rank)) for rank in range(count)]
    return [wait(child) for child in children]


def saved(out: Path) -> str:
    """Say what a killed run left."""
    if (out / "quant_dllm.json").is_file():
        return "the checkpoint"
    folder = folder_of(out)
    if not folder.is_dir():
        return "nothing"
    blocks = len(list(folder.glob("block-*.json")))
    layers = len(list(folder.glob("layer-*.json")))
    return f"{blocks} blocks, {layers} layers"


def same(out: Path, wanted: dict[str, str]) -> bool:
    """Tell whether a folder holds the files of the unbroken run, byte for byte, and the others."""
    return digests(out) == wanted and all((out / name).is_file() for name in TIMED)


def digests(out: Path) -> dict[str, str]:
    """Return the SHA-256 of every file but those that tell of times and memory."""
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(out.iterdir())
        if file.name not in TIMED
    }


def litter(out: Path) -> list[str]:
    """Name what lies beside the output, hidden."""
    return [path.name for path in out.parent.iterdir() if path.name.startswith(f".{out.name}.")]


def go_on(model: Path, out: Path, wanted: dict[str, str]) -> dict[str, Any]:
    """Go on after a kill and say how it went."""
    found = saved(out)
    if out.exists() and digests(out) != wanted:
        return {"found": found, "resumed": "-", "equal": False, "litter": litter(out)}
    began = time.monotonic()
    status = wait(forked(lambda: run(model, out)))
    finished = found == "the checkpoint"  # quantizing it again is refused: it is there already
    resumed = "was finished" if finished and status == REFUSED else f"exit {status}"
    return {
        "found": found,
        "resumed": resumed,
        "equal": (status == DONE or finished) and same(out, wanted) and not litter(out),
        "seconds": round(time.monotonic() - began, 2),
    }


def refusal(work: Callable[[], Any], folder: Path) -> tuple[int, str]:
    """Run something that must be refused; return the status and the reason."""
    said = folder / "said"
    said.write_text("")
    status = wait(forked(work, said))
    return status, said.read_text().replace(f"{folder}/", "").replace(socket.gethostname(), "HOST")


def remove(out: Path) -> None:
    """Remove a run, finished or not."""
    for left in (out, folder_of(out)):
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(left)
