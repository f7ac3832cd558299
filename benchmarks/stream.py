"""Peak memory of quantizing a checkpoint of LLaDA-8B's shape, by the number of its blocks.

    python benchmarks/stream.py --layers 1 --layers 2 --layers 3 --sequences 2
    python benchmarks/stream.py --layers 32                   # 16 GB on disk, 32 sequences of 1024
    python benchmarks/stream.py --write                       # the tables, of what is recorded

The checkpoint is random, bfloat16, and written block by block: it may be larger than memory. Each
quantization is a process of its own: what it had resident at its peak is what counts. On a GPU
(``--device cuda``), the memory that torch had allocated there is recorded beside it.
"""

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

import records
from quant_dllm.models.source import locate

RESULTS = records.RESULTS / "stream.jsonl"
PAGE = records.ROOT / "docs" / "scaling.md"
BEGIN, END = "<!-- stream: made by benchmarks/stream.py --write -->", "<!-- end of stream -->"
WIDTH, MLP, VOCAB, HEADS = 4096, 12288, 126464, 32
BLOCK = {
    "q_proj": (WIDTH, WIDTH), "k_proj": (WIDTH, WIDTH), "v_proj": (WIDTH, WIDTH),
    "attn_out": (WIDTH, WIDTH), "ff_proj": (MLP, WIDTH), "up_proj": (MLP, WIDTH),
    "ff_out": (WIDTH, MLP),
}  # fmt: skip

MAIN = """import sys, torch
torch.set_float32_matmul_precision({!r})
from quant_dllm.cli.main import main
sys.exit(main())"""


def config(layers: int, shrink: int) -> dict[str, Any]:
    """Return LLaDA-8B's configuration with so many blocks, all widths divided by ``shrink``."""
    return {
        "architectures": ["LLaDAModelLM"], "model_type": "llada", "d_model": WIDTH // shrink,
        "n_layers": layers, "n_heads": HEADS // shrink, "n_kv_heads": HEADS // shrink,
        "mlp_hidden_size": MLP // shrink, "vocab_size": VOCAB // shrink,
        "embedding_size": VOCAB // shrink, "max_sequence_length": 4096,
        "rope_theta": 500000.0, "rms_norm_eps": 1e-5, "mask_token_id": VOCAB // shrink - 1,
    }  # fmt: skip


def write_checkpoint(folder: Path, layers: int, shrink: int) -> int:
    """Write the checkpoint, a shard a block; return its bytes."""
    folder.mkdir(parents=True)
    homes: dict[str, str] = {}

    def shard(number: int, tensors: dict[str, torch.Tensor]) -> None:
        name = f"model-{number:05d}-of-{layers + 2:05d}.safetensors"
        save_file(tensors, folder / name, metadata={"format": "pt"})
        homes.update(dict.fromkeys(tensors, name))

    def normal(seed: int, *shape: int) -> torch.Tensor:
        dice = torch.Generator().manual_seed(seed)
        shape = tuple(n // shrink for n in shape)
        return torch.empty(shape, dtype=torch.bfloat16).normal_(0, 0.02, generator=dice)

    stem = "model.transformer"
    norm = {f"{stem}.ln_f.weight": torch.ones(WIDTH // shrink, dtype=torch.bfloat16)}
    shard(1, {f"{stem}.wte.weight": normal(1, VOCAB, WIDTH)})
    shard(2, {f"{stem}.ff_out.weight": normal(2, VOCAB, WIDTH)} | norm)
    for i in range(layers):
        tensors = {f"{stem}.blocks.{i}.{name}.weight": normal(10 * i + seed, *shape)
                   for seed, (name, shape) in enumerate(BLOCK.items(), start=3)}  # fmt: skip
        for name in ("attn_norm", "ff_norm"):
            tensors[f"{stem}.blocks.{i}.{name}.weight"] = torch.ones(
                WIDTH // shrink, dtype=torch.bfloat16
            )
        shard(i + 3, tensors)
    index = {"metadata": {}, "weight_map": homes}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(config(layers, shrink)))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(locate("tiny") / name, folder / name)
    return _size(folder)


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def quantize(model: Path, out: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Quantize in a process of its own; return what it says of itself."""
    command = [
        sys.executable, "-c", MAIN.format(args.products), "quantize", str(model), "-o", str(out),
        "-r", args.recipe, "--calibration", str(locate("tiny") / "calibration.txt.gz"), "--json",
        "--set", f"calibration.sequences={args.sequences}",
        "--set", f"calibration.length={args.length}",
        "--max-memory", args.max_memory, "--device", args.device,
    ]  # fmt: skip
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(done.returncode)
    return json.loads(done.stdout)


def measure(layers: int, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Write, quantize, remove; go on with what `--keep` has kept of a run that was stopped."""
    model, out = folder / "model", folder / "out"
    went_on = model.is_dir()
    stored = _size(model) if went_on else write_checkpoint(model, layers, args.shrink)
    said = quantize(model, out, args)
    for made in (model, out):
        shutil.rmtree(made)
    return {
        "what": "stream", "layers": layers, "shrink": args.shrink, "recipe": args.recipe,
        "checkpoint_bytes": stored,
        "sequences": args.sequences, "length": args.length, "max_memory": args.max_memory,
        "device": args.device, "products": args.products,
        "threads": torch.get_num_threads(), "peak_resident_bytes": said["peak_memory"],
        "peak_device_bytes": said["peak_device_memory"], "went_on": went_on,
        "seconds": said["seconds"],
    } | records.where()  # fmt: skip


def table(found: list[dict[str, Any]]) -> str:
    """Format records as Markdown."""
    rows = ["| width | recipe | blocks | checkpoint, GB | tokens | `--max-memory` | "
            "peak resident, GB | commit, date |",
            "|--:|---|--:|--:|--:|--:|--:|---|"]  # fmt: skip
    for r in found:
        gb = (r["checkpoint_bytes"] / 1e9, r["peak_resident_bytes"] / 1e9)
        tokens = f"{r['sequences']} × {r['length']}"
        peak = f"{gb[1]:.2f}{' (from where it was stopped)' if r.get('went_on') else ''}"
        rows.append(
            f"| {WIDTH // r['shrink']} | {r['recipe']} | {r['layers']} | {gb[0]:.2f} | {tokens} | "
            f"{r['max_memory']} | {peak} | {r['commit']}, {r['date']} |"
        )
    return "\n".join(rows)


def write() -> None:
    """Write what was measured, and what is only computed, into the page."""
    import residency

    found = sorted(records.read(RESULTS), key=lambda r: (r["shrink"], r["recipe"], r["layers"]))
    text = f"{table(found)}\n\n{residency.text()}"
    records.write_between(PAGE, BEGIN, END, text)


def main() -> None:
    parser = argparse.ArgumentParser(description="Peak memory by number of blocks.")
    parser.add_argument("--layers", type=int, action="append", help="blocks; again for more; 32")
    parser.add_argument("--sequences", type=int, default=32)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--shrink", type=int, default=1, help="divides every width")
    parser.add_argument("--recipe", default="quant-dllm-2bit-untuned")
    parser.add_argument("--max-memory", default="1GB", help="of hidden states")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--products", default="highest", choices=("highest", "medium"),
        help="medium: multiply in bfloat16; what is stored is the same, and it takes less time",
    )  # fmt: skip
    parser.add_argument("--folder", type=Path, help="where there is room; a temporary one if not")
    parser.add_argument("--keep", type=Path, help="a folder that stays where a run is stopped")
    parser.add_argument("--record", action="store_true", help=f"add to {RESULTS.name}")
    parser.add_argument("--write", action="store_true", help="write the tables, run nothing")
    args = parser.parse_args()
    if args.write:
        write()
        return
    os.environ.setdefault("QUANT_DLLM_KERNEL", "reference")
    found = []
    with contextlib.ExitStack() as stack:
        temporary = tempfile.TemporaryDirectory(dir=args.folder)
        folder = args.keep or Path(stack.enter_context(temporary))
        for layers in args.layers or [32]:
            found.append(measure(layers, folder, args))
            print(json.dumps(found[-1]), file=sys.stderr, flush=True)
            if args.record:
                with RESULTS.open("a") as file:
                    records.append(file, found[-1])
    print(table(found))


if __name__ == "__main__":
    main()
