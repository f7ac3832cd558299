"""Quantize a model block by block, so that only one block is ever in memory. Read this first."""

import copy
import logging
import math
import time
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from quant_dllm.checkpoint.folder import FORMAT_VERSION, METHOD, Folder
from quant_dllm.checkpoint.shim import SHIM, with_shim
from quant_dllm.checkpoint.writer import CheckpointWriter
from quant_dllm.distributed import (
    any_rank,
    broadcast_facts,
    broadcast_tensors,
    from_first,
    processes,
    rank,
)
from quant_dllm.errors import Interrupted
from quant_dllm.memory import PeakMemory
from quant_dllm.models.load import place, place_buffers
from quant_dllm.models.network import NetworkBlock
from quant_dllm.models.stage import STAGE_ORDERS, Group
from quant_dllm.pipeline.allocation import allocate
from quant_dllm.pipeline.block import BlockWork, Solved
from quant_dllm.pipeline.capture import Capture
from quant_dllm.pipeline.entry import open_streams, save_states
from quant_dllm.pipeline.events import EVENTS, noted
from quant_dllm.pipeline.fold import can_fold, fold
from quant_dllm.pipeline.identity import identity
from quant_dllm.pipeline.job import Job
from quant_dllm.pipeline.journal import Journal, forget_published
from quant_dllm.pipeline.leave import leave
from quant_dllm.pipeline.outside import Outside, pack_outside, write_outside
from quant_dllm.pipeline.owners import Owners
from quant_dllm.pipeline.signals import Stop
from quant_dllm.pipeline.tuned import tune
from quant_dllm.precision.uniform import Uniform
from quant_dllm.quantizers.base import ScalesInputs
from quant_dllm.recipe import DEFAULT, Recipe
from quant_dllm.record import Bits, LayerRecord, RunRecord
from quant_dllm.statistics.layer import NO_STATISTICS, LayerStatistics, output_error
from quant_dllm.track import Track, silent
from quant_dllm.weights.base import QuantizedWeight

logger = logging.getLogger(__name__)

ROUNDED = "rounded"  # in the folder of an unfinished run: the checkpoint that is tuned
POOL_BYTES = 4 << 30  # hidden states in memory, unless something else is asked for


@processes()
def quantize(
    model: str | Path,
    out: str | Path,
    recipe: str | Path | Recipe = DEFAULT,
    *,
    settings: dict[str, Any] | None = None,
    calibration: str | Path | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
    mask_token_id: int | None = None,
    attention_block: int | None = None,
    max_memory: int | None = None,
    track: Track = silent,
) -> RunRecord:
    """Quantize a model and write the packed checkpoint; go on where an unfinished run stopped.

    Under ``torchrun`` the calibration text and the layers are shared by all processes. What is
    finished is saved in a hidden folder beside ``out``, see `Journal`, until ``out`` is there.

    Args:
        model: A folder, ``"tiny"``, or a Hugging Face id.
        out: Folder to make; it must not be there yet.
        recipe: Name of a preset, YAML file, or `Recipe`.
        settings: Fields of the recipe to change, by path: ``{"precision.ratio": 0.1}``.
        calibration: Text file; the bundled text for ``tiny``.
        seed: Seed of the choice of windows and of the masks.
        device: Where to compute; one block is there at a time.
        mask_token_id: The mask token, where the model's folder does not say.
        attention_block: Length of block-causal attention, 0 for full attention, where neither the
            folder nor the family says it right.
        max_memory: Bytes of hidden states that a process keeps in memory; the rest is read from
            disk each time.
        track: Watches the progress.

    Returns:
        What is also written as ``quant_dllm.json``.

    Raises:
        RecipeError: Unknown names or keys, values out of range, a budget that cannot be met.
        ModelError: Missing or damaged files, an unknown architecture, weights that are not finite.
        TextError: A text that is missing or too short.
        RequestError: A model that is quantized already, no mask token, no such device, an
            unfinished run with other inputs.
        CheckpointError: ``out`` is there already, cannot be written, or is being written by another
            run; what was saved of an unfinished run was changed.
        Interrupted: Ctrl-C or SIGTERM came; the layer under way was finished and saved.
        PeerLost: Another process of the run ended.
    """
    out, chosen = Path(out), Recipe.load(recipe).override(settings or {})
    text = None if calibration is None else Path(calibration)
    began = time.monotonic()
    forget_published(out)
    job = Job.prepare(
        model, chosen, out, text=text, seed=seed, device=device, mask_token_id=mask_token_id,
        attention_block=attention_block,
    )  # fmt: skip
    peak = PeakMemory(job.device.type)
    run = Journal(out, identity(job), job.request(str(model), text, seed, attention_block))
    with Stop() as stop, run as journal:
        rounded = journal.folder / ROUNDED if job.tuning else out
        record = _rounded(rounded) if job.tuning else None
        if record is None:
            outside = pack_outside(job)
            blocks = quantize_blocks(job, journal, stop, outside, max_memory or POOL_BYTES)
            total = len(job.source.layers)
            if rank() == 0:
                about = {"model": str(model), "recipe": chosen.name, "seed": seed, "layers": total}
                blocks = noted(blocks, journal.folder / EVENTS, **about)
            layers = list(track(blocks, f"quantizing by {chosen.name}", total))
            record = _write(job, journal, rounded, layers, outside, began, peak)
        if job.tuning:
            record = tune(job, journal, stop, rounded, out, record, track)
    if rank() == 0:
        leave(out)
    return record


def _rounded(folder: Path) -> RunRecord | None:
    """Return the record of a checkpoint that an earlier run rounded and did not come to tune."""
    found = from_first(lambda: Folder(folder).manifest if folder.is_dir() else None)
    return found and RunRecord.from_dict(found)


def _write(
    job: Job,
    journal: Journal,
    folder: Path,
    layers: list[LayerRecord],
    outside: Outside,
    began: float,
    peak: PeakMemory,
) -> RunRecord:
    """Write the checkpoint of finished blocks; the first process alone does."""
    order = {job.source.upstream(slot): i for i, slot in enumerate(job.source.layers)}
    layers.sort(key=lambda layer: order[layer.name])
    if rank():
        return RunRecord.from_dict(broadcast_facts(None, 0))
    with CheckpointWriter(folder, left=journal.left) as writer:
        journal.hand_over(writer)
        write_outside(job, outside, writer)
        for file in job.copied():
            writer.add_file(file.name, file.read_bytes())
        writer.add_file(EVENTS, (journal.folder / EVENTS).read_bytes())
        parameters = job.source.parameters()
        record = RunRecord(
            format_version=FORMAT_VERSION,
            recipe=job.recipe.to_dict(),
            seed=job.seed,
            base_model=job.source.name,
            base_fingerprint=job.base.digest(),
            family=job.source.family.name,
            mask_token_id=job.mask_token_id,
            calibration=job.calibrated_on(),
            bits=Bits.average(
                [math.prod(layer.shape) for layer in layers],
                [layer.code_bits for layer in layers],
                [layer.stored_bits for layer in layers],
                8 * writer.weight_bytes / parameters,
            ),
            parameters=parameters,
            seconds=round(journal.seconds + time.monotonic() - began, 2),
            peak_memory=peak.process,
            peak_device_memory=peak.device,
            device=str(job.device),
            versions={name: version(name) for name in ("quant-dllm", "torch", "safetensors")},
            fingerprint=job.packed.digest(),
            layers=layers,
            outside=[layer for _, layer in outside.values()],
        )
        config, shim = with_shim(_config(job, [*layers, *record.outside]))
        writer.add_file(SHIM, shim)
        journal.publishing()
        writer.publish(config, record.to_dict())
        broadcast_facts(record.to_dict(), 0)
    return record


@torch.no_grad()
def quantize_blocks(
    job: Job, journal: Journal, stop: Stop, outside: Outside, memory: int
) -> Iterator[LayerRecord]:
    """Quantize block after block; what went wrong in one flows into the next with the stream.

    Raises:
        Interrupted: It was asked to; all finished layers are saved.
    """
    network = job.source.empty()
    for facts in journal.blocks:
        job.packed.restore(facts["packed"])
        job.base.restore(facts["base"])
        yield from (LayerRecord(**record) for record in facts["layers"])
    if len(journal.blocks) == len(network.blocks):
        return
    allocation = allocate(job, journal, stop, memory)
    stream, full = open_streams(job, network, journal, outside, memory)
    for index in range(len(journal.blocks), len(network.blocks)):
        began, before = time.monotonic(), (len(job.packed), len(job.base))
        block, weights = _read_block(job, index, network.blocks[index])
        capture = Capture(block, stream, full, job.needs, job.calibration.damping)
        work = BlockWork(job, index, block, weights, journal, allocation)
        for stage in STAGE_ORDERS[job.calibration.order]:
            for some in capture.parts(stage):
                yield from _quantize_groups(work, capture, stage, some, stop)
        if stream and index + 1 < len(network.blocks):
            with journal.explained():
                files = capture.advance(index + 1)
            save_states(journal, index + 1, files)
        tensors = _block_tensors(job, index, block, work.packed)
        hashes = {
            name: fingerprint.hashes(list(fingerprint)[start:])
            for name, fingerprint, start in zip(
                ("packed", "base"), (job.packed, job.base), before, strict=True
            )
        }
        layers = [work.records[name].to_dict() for name in work.packed]
        seconds = time.monotonic() - began
        journal.save_block(index, tensors, {"seconds": seconds, "layers": layers} | hashes)
        job.source.folder.close()


def _quantize_groups(
    work: BlockWork, capture: Capture, stage: int, some: range, stop: Stop
) -> Iterator[LayerRecord]:
    """Gather what some groups of a stage receive, and quantize their layers."""
    groups = [work.block.stages[stage][i] for i in some]
    owners = Owners.assign(work.block, groups)
    found = [(group, NO_STATISTICS) for group in groups]
    if not work.holds(owners.layers):
        _obey(stop, work)
        found = capture.statistics(stage, some, owners)
    stats = {}
    for group, gathered in found:
        scaled = _scale_inputs(work, group, gathered, owners.of(group)[0])
        if group.layers[0] in work.scales:
            capture.forget()
        stats |= dict.fromkeys(group.layers, scaled)
    for names in owners.rounds():
        yield from work.round(names, owners, stats, _solve)
        _obey(stop, work)


def _solve(work: BlockWork, name: str, stats: LayerStatistics) -> Solved:
    """Quantize one layer."""
    began = time.monotonic()
    slot, weight = f"blocks.{work.index}.{name}", work.weights[name]
    orders, increase = work.allocation.get(slot, (None, None))
    packed = _quantize_layer(work.job, weight, stats, orders)
    seconds = time.monotonic() - began
    upstream = work.job.source.upstream(slot)
    record = _layer_record(upstream, weight, packed, stats, seconds, increase)
    return packed, record


def _obey(stop: Stop, work: BlockWork) -> None:
    """End the run if it was asked to in any process."""
    if any_rank(stop.wanted):
        raise Interrupted(
            f"stopped in block {work.index}; all finished layers are saved. Go on with: "
            f"quant-dllm resume {work.journal.out}"
        )


def _quantize_layer(
    job: Job, weight: Tensor, stats: LayerStatistics, orders: list[int] | None
) -> QuantizedWeight:
    """Give each block of channels its bits, if they were not allocated before, and round."""
    if isinstance(job.precision, Uniform):
        bits = job.precision.allocate(weight, stats)
    else:
        assert orders, "its budget was spent before"
        bits = torch.tensor(orders)
    return job.quantizer.quantize(weight, stats, bits, job.precision.block_size)


def _scale_inputs(
    work: BlockWork, group: Group, stats: LayerStatistics, owner: int
) -> LayerStatistics:
    """Move part of the weights' scale into what produces the inputs, if the method wants it."""
    job, block = work.job, work.block
    if not isinstance(job.quantizer, ScalesInputs) or not can_fold(block, group):
        return stats
    s = work.saved_scale(group)
    if s is None:
        found = None
        if rank() == owner:
            shared = [work.weights[name] for name in group.layers]
            bits, size = int(job.precision.bits), job.precision.block_size
            found = {"s": job.quantizer.input_scale(shared, stats, bits, size)}
        s = broadcast_tensors(found, owner, job.device)["s"]
    for name in group.layers:
        work.weights[name] = work.weights[name] * s
        work.scales[name] = s
    fold(block, group, s, work.packed)
    return stats.scaled(1 / s) if len(stats.moment) else stats


def _read_block(
    job: Job, index: int, empty: nn.Module
) -> tuple[NetworkBlock, dict[str, Float[Tensor, "out in"]]]:
    """Read one block onto the device, and its linear weights in float32 besides."""
    block: NetworkBlock = copy.deepcopy(empty)  # type: ignore[assignment]
    linears = {f"{n}.weight": n for stage in block.stages for group in stage for n in group.layers}
    weights = {}
    for name in dict(block.named_parameters()):
        tensor = job.read(f"blocks.{index}.{name}").to(job.device)
        place(block, name, tensor, job.device, job.dtype)
        if name in linears:  # in float32 the block's own will do: nothing writes into it
            own = block.get_parameter(name).data
            weights[linears[name]] = own if own.dtype == torch.float32 else tensor.float()
    place_buffers(block, job.device)
    return block.eval(), weights


def _block_tensors(
    job: Job, index: int, block: nn.Module, packed: dict[str, QuantizedWeight]
) -> dict[str, Tensor]:
    """Return the tensors of the packed layers, and what else there is in the model's dtype."""
    found = {}
    for name, weight in packed.items():
        upstream = job.source.upstream(f"blocks.{index}.{name}")
        tensors = {f"{upstream}.{key}": t for key, t in weight.tensors().items()}
        for key, tensor in tensors.items():
            job.packed.add(key, tensor)
        found |= tensors
    for name, parameter in block.named_parameters():
        if name.removesuffix(".weight") not in packed:
            upstream = job.source.family.upstream(f"blocks.{index}.{name}")
            found[upstream] = parameter.data.to(job.source.folder.dtype(upstream))
    return found


def _layer_record(
    name: str, weight: Tensor, packed: QuantizedWeight, stats: LayerStatistics, seconds: float,
    increase: float | None,
) -> LayerRecord:  # fmt: skip
    """Note what became of a layer, and log it."""
    orders = getattr(packed, "orders", getattr(packed, "bits", None))
    record = LayerRecord(
        name=name,
        kind=packed.kind,
        shape=list(weight.shape),
        code_bits=packed.code_bits,
        stored_bits=packed.stored_bits,
        orders={} if orders is None else {str(k): n for k, n in Counter(orders.tolist()).items()},
        error=output_error(weight, packed.dequantize(), stats) if stats.tokens else None,
        tokens=stats.tokens,
        seconds=round(seconds, 3),
        chosen=stats.chosen,
        layout={"kind": packed.kind} | packed.layout(),
        increase=increase,
    )
    logger.debug("%s", record.line())
    return record


def _config(job: Job, layers: list[LayerRecord]) -> dict[str, Any]:
    """Return the model's own ``config.json`` with what a loader must know added."""
    quantization = {
        "quant_method": METHOD,
        "format_version": FORMAT_VERSION,
        "fingerprint": job.packed.digest(),
        "layers": {layer.name: layer.layout for layer in layers},
    }
    config = job.source.folder.config | {"mask_token_id": job.mask_token_id}
    if job.source.config.attention_block != job.source.family.config(config).attention_block:
        config["attention_block"] = job.source.config.attention_block or 0
    return config | {"quantization_config": quantization}
