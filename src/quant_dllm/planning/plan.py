"""What will come out of a quantization, and what it will take: from headers, in seconds."""

import os
import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from quant_dllm.checkpoint.writer import SHARD_BYTES
from quant_dllm.errors import RequestError
from quant_dllm.memory import PeakMemory
from quant_dllm.pipeline.entry import BATCH_TOKENS
from quant_dllm.pipeline.job import Job
from quant_dllm.pipeline.stream import HELD_BYTES
from quant_dllm.pipeline.tune import kept_bytes
from quant_dllm.planning.sizes import Size, Sizes
from quant_dllm.planning.timing import Timing, time_blocks
from quant_dllm.planning.tuning import tuning_bytes
from quant_dllm.quantizers.outside import Grouped
from quant_dllm.recipe import Recipe
from quant_dllm.record import Bits
from quant_dllm.statistics.layer import Needs

BESIDE_BYTES = 1200  # what manifest, configuration and events say of a layer
HEADER_BYTES = 120  # what a header says of a tensor


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What will come out, and what it takes.

    Attributes:
        model, recipe, family: What was asked for.
        blocks, layers, parameters: Of the model; layers are those that are quantized.
        bits: Bits a weight, three ways, as in the record of a run.
        weight_bytes, base_bytes: Weight files after and before.
        disk_bytes: What the new folder takes.
        disk_free: What there is; ``None`` if no folder was named.
        memory_bytes: Peak memory of the process.
        memory_there: Memory of the machine; ``None`` where it does not tell.
        calibration_tokens: Tokens that flow through the network.
        seconds: Time of the run; ``None`` where the machine was not timed.
        warnings: What will not stop the run, and may surprise.
    """

    model: str
    recipe: str
    family: str
    blocks: int
    layers: int
    parameters: int
    bits: Bits
    weight_bytes: int
    base_bytes: int
    disk_bytes: int
    disk_free: int | None
    memory_bytes: int
    memory_there: int | None
    calibration_tokens: int
    seconds: float | None
    warnings: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON's types."""
        return asdict(self)


def plan(
    model: str | Path,
    recipe: str | Path | Recipe,
    *,
    settings: dict[str, Any] | None = None,
    out: Path | None = None,
    calibration: Path | None = None,
    device: str = "cpu",
    timed: bool = False,
    seed: int = 0,
    mask_token_id: int | None = None,
    attention_block: int | None = None,
) -> Plan:
    """Refuse what `quantize` would refuse, and say what the rest will give.

    Args:
        model: A folder, ``"tiny"``, or a Hugging Face id.
        recipe: Name of a preset, YAML file, or `Recipe`.
        settings: Fields of the recipe to change, by path.
        out: Folder to make; its disk is looked at.
        calibration: Text file; the bundled text for ``tiny``.
        device: Where to compute.
        timed: Whether to quantize a block of each kind and throw it away, to tell the time.
        seed: Of windows and masks.
        mask_token_id: The mask token, where the model's folder does not say.
        attention_block: See `quantize`.

    Raises:
        RequestError: The disk is too small.
        QuantDLLMError: What `quantize` would raise before it begins.
    """
    chosen = Recipe.load(recipe).override(settings or {})
    began = time.monotonic()
    nowhere = out or Path(f".quant-dllm-plan-{os.getpid()}")
    job = Job.prepare(
        model, chosen, nowhere, text=calibration, seed=seed, device=device,
        mask_token_id=mask_token_id, attention_block=attention_block,
    )  # fmt: skip
    prepared = time.monotonic() - began
    packed, outside = sizes(job)
    weights = round(packed.file + outside)
    parameters, disk = job.source.parameters(), weights + _beside(job)
    timing = time_blocks(job) if timed else None
    free = shutil.disk_usage(_existing(out)).free if out else None
    if free is not None and disk > free:
        raise RequestError(
            f"{out} will take {disk / 1e9:.2f} GB and its disk has {free / 1e9:.2f} GB left. "
            "Free space or name another folder."
        )
    found = Plan(
        model=str(model),
        recipe=chosen.name,
        family=job.source.family.name,
        blocks=job.source.config.blocks,
        layers=len(job.source.layers),
        parameters=parameters,
        bits=Bits(
            code=packed.code / packed.weights,
            stored=packed.stored / packed.weights,
            file=8 * weights / parameters,
        ),
        weight_bytes=weights,
        base_bytes=job.source.folder.weight_bytes,
        disk_bytes=disk,
        disk_free=free,
        memory_bytes=_memory(job, timing, weights),
        memory_there=_machine_memory(),
        calibration_tokens=_tokens(job),
        seconds=prepared + timing.seconds if timing else None,
    )
    found.warnings.extend(_warnings(found))
    return found


def sizes(job: Job) -> tuple[Size, int]:
    """Return what packed layers take together, and bytes of all else in the weight files."""
    shapes, counted, total = job.source.empty().state_dict(), Sizes(job), Size()
    counts: dict[tuple[int, int], int] = {}
    slots = set(job.source.layers)
    for slot in job.source.layers:
        out, inputs = map(int, shapes[f"{slot}.weight"].shape)
        counts[out, inputs] = counts.get((out, inputs), 0) + 1
    for (out, inputs), count in counts.items():
        total += counted.layer(out, inputs) * count
    outside, names, a_layer = 0.0, 0, counted.names
    packed = job.source.empty().outside if isinstance(job.outside, Grouped) else ()
    for name, tensor in shapes.items():
        slot = name.removesuffix(".weight")
        if slot in slots:
            names += a_layer
        elif slot in packed:
            outside += counted.outside(*map(int, tensor.shape))
            names += 2
        else:
            upstream = job.source.family.upstream(name)
            outside += tensor.numel() * job.source.folder.dtype(upstream).itemsize
            names += 1
    return total, round(outside) + HEADER_BYTES * names


def _beside(job: Job) -> int:
    """Count files that are copied, and what is written about the run."""
    copied = sum(f.stat().st_size for f in job.source.folder.path.glob("tokenizer*"))
    return copied + BESIDE_BYTES * len(job.source.layers) + 60_000


def _tokens(job: Job) -> int:
    if job.windows is None:
        return 0
    return job.windows.numel() * (getattr(job.calibration, "timesteps", None) or 1)


def _memory(job: Job, timing: Timing | None, packed: int) -> int:
    """Guess the peak: that of rounding, or of tuning where it is higher."""
    held = PeakMemory.now() or 400_000_000
    rounding = _rounding_memory(job, timing, held)
    return max(rounding, tuning_bytes(job, packed, held)) if job.tuning else rounding


def _rounding_memory(job: Job, timing: Timing | None, held: int) -> int:
    """Guess it from the process, the stream of states, a block, and what rounding it takes."""
    config, streams = job.source.config, 2 if Needs.DRIFT in job.needs else 1
    states = 4 * _tokens(job) * config.width * streams
    network = job.source.empty()
    waiting = 2 * 4 * _tokens(job) * config.mlp_width * bool(network.blocks[0].resumable)
    if timing and timing.memory:
        more = min(HELD_BYTES, waiting) - min(HELD_BYTES, waiting / timing.share)
        return round(timing.memory + states * (1 - 1 / timing.share) + streams * more)
    block = sum(p.numel() for p in network.blocks[0].parameters())
    shapes = network.state_dict()
    widest = max(int(shapes[f"{slot}.weight"].shape[1]) for slot in job.source.layers[:64])
    moments = 4 * 6 * widest**2 * streams
    solves = 4 * 3 * (2 * widest) ** 2 if hasattr(job.quantizer, "refinements") else 0
    passing = 4 * BATCH_TOKENS * (4 * config.width + 3 * config.mlp_width)
    length = job.windows.shape[1] if job.windows is not None else 0
    scores = 4 * 3 * BATCH_TOKENS * config.heads * length
    written = min(SHARD_BYTES, job.source.folder.weight_bytes)
    states += streams * min(HELD_BYTES, waiting)
    if job.block_tuning:
        piece = min(BATCH_TOKENS, job.block_tuning.batch * length)
        passing += kept_bytes(config, piece) // config.blocks
    return round(held + states + 4 * 3 * block + moments + solves + passing + scores + written)


def _machine_memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def _existing(path: Path) -> Path:
    """Return the nearest folder that is there."""
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.is_dir())


def _warnings(found: Plan) -> list[str]:
    told = []
    if found.memory_there and found.memory_bytes > 0.9 * found.memory_there:
        told.append(
            f"about {found.memory_bytes / 1e9:.1f} GB of memory are wanted and the machine has "
            f"{found.memory_there / 1e9:.1f} GB; fewer calibration.sequences take less"
        )
    return told
