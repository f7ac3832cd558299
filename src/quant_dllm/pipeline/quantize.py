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

from quant_dllm.checkpoint.folder import FORMAT_VERSION, METHOD
from quant_dllm.checkpoint.shim import SHIM, with_shim
from quant_dllm.checkpoint.writer import CheckpointWriter
from quant_dllm.memory import PeakMemory
from quant_dllm.models.load import place, place_buffers
from quant_dllm.models.network import Network, NetworkBlock
from quant_dllm.models.stage import STAGE_ORDERS, Group
from quant_dllm.pipeline.capture import Capture, Stream
from quant_dllm.pipeline.events import EVENTS, noted
from quant_dllm.pipeline.fold import can_fold, fold
from quant_dllm.pipeline.job import Job
from quant_dllm.pipeline.leave import leave
from quant_dllm.quantizers.base import ScalesInputs
from quant_dllm.recipe import DEFAULT, Recipe
from quant_dllm.record import Bits, LayerRecord, RunRecord
from quant_dllm.statistics.layer import LayerStatistics, Needs, output_error
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
    attention_block: int | None = None,
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
        attention_block: Length of block-causal attention, 0 for full attention, where neither the
            folder nor the family says it right.
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
        model, chosen, out, text=text, seed=seed, device=device, mask_token_id=mask_token_id,
        attention_block=attention_block,
    )  # fmt: skip
    peak = PeakMemory(job.device.type)
    total = len(job.source.layers)
    with CheckpointWriter(out) as writer:
        records = noted(
            quantize_blocks(job, writer), writer.folder / EVENTS, model=str(model),
            recipe=chosen.name, seed=seed, layers=total,
        )  # fmt: skip
        layers = list(track(records, f"quantizing by {chosen.name}", total))
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
            fingerprint=job.packed.digest(),
            layers=layers,
        )
        config, shim = with_shim(_config(job, layers))
        writer.add_file(SHIM, shim)
        writer.publish(config, record.to_dict())
    leave(out)
    return record


@torch.no_grad()
def quantize_blocks(job: Job, writer: CheckpointWriter) -> Iterator[LayerRecord]:
    """Quantize block after block; what went wrong in one flows into the next with the stream."""
    network = job.source.empty()
    stream = _embed(job, network)
    full = stream.copy() if stream and Needs.DRIFT in job.needs else None
    for index, empty in enumerate(network.blocks):
        block, weights = _read_block(job, index, empty)
        capture = Capture(block, stream, full, job.needs, job.calibration.damping)
        packed: dict[str, QuantizedWeight] = {}
        for stage in STAGE_ORDERS[job.calibration.order]:
            for group, stats in capture.statistics(stage):
                stats = _scale_inputs(job, block, group, stats, weights, packed)
                for name in group.layers:
                    began = time.monotonic()
                    packed[name] = _quantize_layer(job, weights[name], stats)
                    seconds = time.monotonic() - began
                    block.get_submodule(name).weight.data = packed[name].dequantize().to(job.dtype)
                    upstream = job.source.upstream(f"blocks.{index}.{name}")
                    yield _layer_record(upstream, weights.pop(name), packed[name], stats, seconds)
        capture.advance()
        _write_block(job, index, block, packed, writer)


def _quantize_layer(job: Job, weight: Tensor, stats: LayerStatistics) -> QuantizedWeight:
    """Give each block of channels its bits, and round."""
    bits = job.precision.allocate(weight, stats)
    return job.quantizer.quantize(weight, stats, bits, job.precision.block_size)


def _scale_inputs(
    job: Job,
    block: NetworkBlock,
    group: Group,
    stats: LayerStatistics,
    weights: dict[str, Tensor],
    packed: dict[str, QuantizedWeight],
) -> LayerStatistics:
    """Move part of the weights' scale into what produces the inputs, if the method wants it."""
    if not isinstance(job.quantizer, ScalesInputs) or not can_fold(block, group):
        return stats
    shared = [weights[name] for name in group.layers]
    s = job.quantizer.input_scale(shared, stats, job.precision.bits, job.precision.block_size)
    for name in group.layers:
        weights[name] = weights[name] * s
    fold(block, group, s, packed)
    return stats.scaled(1 / s)


def _embed(job: Job, network: Network) -> Stream | None:
    """Turn what the model is shown into the stream that enters the first block."""
    if job.windows is None:
        return None
    views, sight = network.look(*(ids.to(job.device) for ids in job.views()))
    embed = copy.deepcopy(network.embed).eval()
    for name in embed.state_dict():
        place(embed, name, job.source.tensor(f"embed.{name}"), job.device, job.dtype)
    place_buffers(embed, job.device)
    batches = views.split(max(1, BATCH_TOKENS // views.shape[1]))
    return Stream([embed(ids.to(job.device)) for ids in batches], sight)


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
        if name in linears:
            weights[linears[name]] = tensor.float()
    place_buffers(block, job.device)
    return block.eval(), weights


def _write_block(
    job: Job,
    index: int,
    block: nn.Module,
    packed: dict[str, QuantizedWeight],
    writer: CheckpointWriter,
) -> None:
    """Hand the packed layers to the writer, and what else the block holds in the model's dtype."""
    for name, weight in packed.items():
        upstream = job.source.upstream(f"blocks.{index}.{name}")
        tensors = {f"{upstream}.{key}": t for key, t in weight.tensors().items()}
        for key, tensor in tensors.items():
            job.packed.add(key, tensor)
        writer.add(tensors)
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
        chosen=stats.chosen,
        layout={"kind": packed.kind} | packed.layout(),
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
