"""Quantize a model block by block, so that only one block is ever in memory. Read this first.

What a layer sees is gathered by `capture`, how many bits its blocks of channels get is told by the
recipe's `precision`, how they are rounded by its `quantizer`. `tune_block` tunes what comes of it
block by block, `tuned` the whole model.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from quant_dllm.distributed import any_rank, processes, rank
from quant_dllm.errors import Interrupted
from quant_dllm.memory import PeakMemory
from quant_dllm.models.stage import STAGE_ORDERS
from quant_dllm.pipeline.allocation import allocate
from quant_dllm.pipeline.block import BlockWork
from quant_dllm.pipeline.capture import Capture
from quant_dllm.pipeline.entry import open_streams, save_states
from quant_dllm.pipeline.events import EVENTS, noted
from quant_dllm.pipeline.fold import scale_inputs
from quant_dllm.pipeline.head import head_statistics
from quant_dllm.pipeline.identity import identity
from quant_dllm.pipeline.job import Job
from quant_dllm.pipeline.journal import Journal, finish_published
from quant_dllm.pipeline.leave import leave
from quant_dllm.pipeline.outside import Outside, pack_outside
from quant_dllm.pipeline.owners import Owners
from quant_dllm.pipeline.publish import publish, published
from quant_dllm.pipeline.signals import Stop
from quant_dllm.pipeline.solved import Solved, layer_record
from quant_dllm.pipeline.tune_block import BlockTuning
from quant_dllm.pipeline.tuned import tune
from quant_dllm.precision.uniform import Uniform
from quant_dllm.recipe import DEFAULT, Recipe
from quant_dllm.record import LayerRecord, RunRecord
from quant_dllm.statistics.layer import NO_STATISTICS, LayerStatistics
from quant_dllm.track import Track, silent

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
        settings: Fields of the recipe to change, by path: ``{"quantizer.rounds": 20}``.
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
    finish_published(out)
    job = Job.prepare(
        model, chosen, out, text=text, seed=seed, device=device, mask_token_id=mask_token_id,
        attention_block=attention_block,
    )  # fmt: skip
    peak = PeakMemory(job.device.type)
    run = Journal(out, identity(job), job.request(str(model), text, seed, attention_block))
    with Stop() as stop, run as journal:
        rounded = journal.folder / ROUNDED if job.tuning else out
        record = published(rounded) if job.tuning else None
        if record is None:
            memory = max_memory or POOL_BYTES
            allocate(job, journal, stop, memory)  # first: nothing else need be in memory with it
            embedding = pack_outside(job, embedding_only=True)
            blocks = quantize_blocks(job, journal, stop, embedding, memory)
            del embedding  # the blocks let it go once they have the states
            total = len(job.source.layers)
            if rank() == 0:
                about = {"model": str(model), "recipe": chosen.name, "seed": seed, "layers": total}
                last = "rounded" if job.tuning else "end"
                blocks = noted(blocks, journal.folder / EVENTS, last, **about)
            then = ", tuning follows" if job.tuning else ""
            layers = list(track(blocks, f"quantizing by {chosen.name}{then}", total))
            seen = head_statistics(job, journal, memory)
            record = publish(job, journal, rounded, layers, seen, began, peak)
        if job.tuning:
            record = tune(job, journal, stop, rounded, out, record, track, peak)
        if rank() == 0:
            leave(out, scratch=journal.folder)
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
    del outside
    for index in range(len(journal.blocks), len(network.blocks)):
        began = time.monotonic()
        work = BlockWork.read(job, index, network.blocks[index], journal, allocation)
        capture = Capture(work.block, stream, full, job.needs, job.calibration.damping)
        for stage in STAGE_ORDERS[job.calibration.order]:
            for some in capture.parts(stage):
                yield from _quantize_groups(work, capture, stage, some, stop)
        if stream and (index + 1 < len(network.blocks) or job.to_the_end):
            with journal.explained():
                files = capture.advance_full(index + 1)
            if full and job.block_tuning:
                capture.forget()
                _tune_block(work, BlockTuning(work, stream, full.states, job.block_tuning), stop)
            with journal.explained():
                files |= capture.advance(index + 1)
            save_states(journal, index + 1, files)
        work.save(began)
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
        with work.journal.explained():  # sums may wait on disk
            found = capture.statistics(stage, some, owners)
    stats = {}
    for group, gathered in found:
        scaled = scale_inputs(work, group, gathered, owners.of(group)[0])
        if group.layers[0] in work.scales:
            capture.forget()
        stats |= dict.fromkeys(group.layers, scaled)
    for names in owners.rounds():
        yield from work.round(names, owners, stats, _solve)
        _obey(stop, work)


def _solve(work: BlockWork, name: str, stats: LayerStatistics) -> Solved:
    """Quantize one layer: give each block of channels its bits, and round."""
    began = time.monotonic()
    job, weight, slot = work.job, work.weights[name], f"blocks.{work.index}.{name}"
    orders, increase = work.allocation.get(slot, (None, None))
    if isinstance(job.precision, Uniform):
        bits = job.precision.allocate(weight, stats)
    else:
        assert orders, "its budget was spent before"
        bits = torch.tensor(orders)
    packed = job.quantizer.quantize(weight, stats, bits, job.precision.block_size)
    seconds = time.monotonic() - began
    record = layer_record(job.source.upstream(slot), weight, packed, stats, seconds, increase)
    return packed, record


def _tune_block(work: BlockWork, tuning: BlockTuning, stop: Stop) -> None:
    """Tune a block whose layers are all solved; one that is stopped begins anew."""
    for curve in tuning.run():
        work.tuned = list(curve)
        _obey(stop, work)


def _obey(stop: Stop, work: BlockWork) -> None:
    """End the run if it was asked to in any process."""
    if any_rank(stop.wanted):
        raise Interrupted(
            f"stopped in block {work.index}; all finished layers are saved. Go on with: "
            f"quant-dllm resume {work.journal.out}"
        )
