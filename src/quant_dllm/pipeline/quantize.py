"""Quantize a model block by block, so that only one block is ever in memory. Read this first."""

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

from quant_dllm.checkpoint.folder import FORMAT_VERSION, METHOD
from quant_dllm.checkpoint.writer import CheckpointWriter
from quant_dllm.memory import PeakMemory
from quant_dllm.models.backbone import STAGES, Block, Rotary
from quant_dllm.pipeline.capture import STAGE_ORDERS, Capture, Stream
from quant_dllm.pipeline.fold import can_fold, fold
from quant_dllm.pipeline.job import Job
from quant_dllm.quantizers.base import ScalesInputs
from quant_dllm.recipe import DEFAULT, Recipe
from quant_dllm.record import Bits, LayerRecord, RunRecord
from quant_dllm.statistics.layer import NO_STATISTICS, LayerStatistics, Needs, output_error
from quant_dllm.track import Track, silent
from quant_dllm.weights.base import QuantizedWeight

logger = logging.getLogger(__name__)

BATCH_TOKENS = 4096  # tokens that go through a block at once
COPIED = ("tokenizer*", "special_tokens_map.json", "vocab*", "merges.txt", "added_tokens.json",
          "generation_config.json", "chat_template*")  # fmt: skip


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
    track: Track = silent,
) -> RunRecord:
    """Quantize a model and write the packed checkpoint.

    Args:
        model: A folder, ``"tiny"``, or a Hugging Face id.
        out: Folder to make; it must not be there yet.
        recipe: Name of a preset, YAML file, or `Recipe`.
        settings: Fields of the recipe to change, by path: ``{"precision.ratio": 0.1}``.
        calibration: Text file; the bundled text for ``tiny``.
        seed: Seed of the choice of windows and of the masks.
        device: Where to compute; one block is there at a time.
        mask_token_id: The mask token, where the model's folder does not say.
        track: Watches the progress.

    Returns:
        What is also written as ``quant_dllm.json``.

    Raises:
        RecipeError: Unknown names or keys, values out of range, a budget that cannot be met.
        ModelError: Missing or damaged files, an unknown architecture, weights that are not finite.
        TextError: A text that is missing or too short.
        RequestError: A model that is quantized already, no mask token, no such device.
        CheckpointError: ``out`` is there already, or cannot be written.
    """
    out, chosen = Path(out), Recipe.load(recipe).override(settings or {})
    text = None if calibration is None else Path(calibration)
    began = time.monotonic()
    job = Job.prepare(
        model, chosen, out, text=text, seed=seed, device=device, mask_token_id=mask_token_id
    )
    peak = PeakMemory(job.device.type)
    total = job.source.config.blocks * sum(len(stage) for stage in STAGES)
    with CheckpointWriter(out) as writer:
        layers = list(track(quantize_blocks(job, writer), f"quantizing by {chosen.name}", total))
        for name in job.source.outside_blocks():
            writer.add({job.source.family.upstream(name): job.read(name)})
        for pattern in COPIED:
            for file in job.source.folder.path.glob(pattern):
                writer.add_file(file.name, file.read_bytes())
        parameters = job.source.parameters()
        record = RunRecord(
            format_version=FORMAT_VERSION,
            recipe=chosen.to_dict(),
            seed=seed,
            base_model=str(model),
            base_fingerprint=job.digest(),
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
            seconds=round(time.monotonic() - began, 2),
            peak_memory=peak.process,
            peak_device_memory=peak.device,
            device=str(job.device),
            versions={name: version(name) for name in ("quant-dllm", "torch", "safetensors")},
            layers=layers,
        )
        writer.publish(_config(job, layers), record.to_dict())
    return record


@torch.no_grad()
def quantize_blocks(job: Job, writer: CheckpointWriter) -> Iterator[LayerRecord]:
    """Quantize block after block; what went wrong in one flows into the next with the stream."""
    stream = _embed(job)
    full = stream.copy() if stream and Needs.DRIFT in job.needs else None
    for index in range(job.source.config.blocks):
        block, weights = _read_block(job, index)
        capture = stream and Capture(block, stream, full, job.needs, job.calibration.damping)
        packed: dict[str, QuantizedWeight] = {}
        for stage in STAGE_ORDERS[job.calibration.order]:
            stats = capture.statistics(stage) if capture else NO_STATISTICS
            stats = _scale_inputs(job, block, stage, stats, weights, packed)
            for name in STAGES[stage]:
                began = time.monotonic()
                packed[name] = _quantize_layer(job, weights[name], stats)
                seconds = time.monotonic() - began
                block.get_submodule(name).weight.data = packed[name].dequantize().to(job.dtype)
                upstream = job.source.upstream(f"blocks.{index}.{name}")
                yield _layer_record(upstream, weights.pop(name), packed[name], stats, seconds)
        if capture:
            capture.advance()
        _write_block(job, index, block, packed, writer)


def _quantize_layer(job: Job, weight: Tensor, stats: LayerStatistics) -> QuantizedWeight:
    """Give each block of channels its bits, and round."""
    bits = job.precision.allocate(weight, stats)
    return job.quantizer.quantize(weight, stats, bits, job.precision.block_size)


def _scale_inputs(
    job: Job,
    block: Block,
    stage: int,
    stats: LayerStatistics,
    weights: dict[str, Tensor],
    packed: dict[str, QuantizedWeight],
) -> LayerStatistics:
    """Move part of the weights' scale into what produces the inputs, if the method wants it."""
    if not isinstance(job.quantizer, ScalesInputs) or not can_fold(block, stage):
        return stats
    shared = [weights[name] for name in STAGES[stage]]
    s = job.quantizer.input_scale(shared, stats, job.precision.bits, job.precision.block_size)
    for name in STAGES[stage]:
        weights[name] = weights[name] * s
    fold(block, stage, s, packed)
    return stats.scaled(1 / s)


def _embed(job: Job) -> Stream | None:
    """Turn what the model is shown into the stream that enters the first block."""
    if job.windows is None:
        return None
    embedding = job.source.tensor("embed.weight").to(job.device, job.dtype)
    views = job.views()
    batches = views.split(max(1, BATCH_TOKENS // views.shape[1]))
    states = [embedding[ids.to(job.device)] for ids in batches]
    return Stream(states, Rotary.of(job.source.config, views.shape[1], job.device))


def _read_block(job: Job, index: int) -> tuple[Block, dict[str, Float[Tensor, "out in"]]]:
    """Read one block onto the device, and its linear weights in float32 besides."""
    with torch.device("meta"):
        block = Block(job.source.config)
    linears = {f"{name}.weight": name for stage in STAGES for name in stage}
    weights = {}
    for name in dict(block.named_parameters()):
        tensor = job.read(f"blocks.{index}.{name}").to(job.device)
        slot, _, leaf = name.rpartition(".")
        here = nn.Parameter(tensor.to(job.dtype), requires_grad=False)
        setattr(block.get_submodule(slot), leaf, here)
        if name in linears:
            weights[linears[name]] = tensor.float()
    return block, weights


def _write_block(
    job: Job, index: int, block: Block, packed: dict[str, QuantizedWeight], writer: CheckpointWriter
) -> None:
    """Hand the packed layers to the writer, and what else the block holds in the model's dtype."""
    for name, weight in packed.items():
        upstream = job.source.upstream(f"blocks.{index}.{name}")
        writer.add({f"{upstream}.{key}": t for key, t in weight.tensors().items()})
    for name, parameter in block.named_parameters():
        if name.removesuffix(".weight") not in packed:
            upstream = job.source.family.upstream(f"blocks.{index}.{name}")
            writer.add({upstream: parameter.data.to(job.source.folder.dtype(upstream))})


def _layer_record(
    name: str, weight: Tensor, packed: QuantizedWeight, stats: LayerStatistics, seconds: float
) -> LayerRecord:
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
        layout={"kind": packed.kind} | packed.layout(),
    )
    logger.debug("%s", record.line())
    return record


def _config(job: Job, layers: list[LayerRecord]) -> dict[str, Any]:
    """Return the model's own ``config.json`` with what a loader must know added."""
    quantization = {
        "quant_method": METHOD,
        "format_version": FORMAT_VERSION,
        "layers": {layer.name: layer.layout for layer in layers},
    }
    mask = {"mask_token_id": job.mask_token_id}
    return job.source.folder.config | mask | {"quantization_config": quantization}
