"""How long tuning will take, and in how much memory: updates through the first blocks are timed.

What an update takes is linear in the blocks, so that updates of the first blocks and updates of no
block at all tell it: embedding, head and loss are in both.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch

from quant_dllm.embedding import QuantEmbedding
from quant_dllm.linear import QuantLinear
from quant_dllm.models.model import DiffusionLM
from quant_dllm.models.network import Network
from quant_dllm.models.source import Source
from quant_dllm.pipeline.job import Job
from quant_dllm.pipeline.original import read_block, read_outside
from quant_dllm.pipeline.outside import Outside
from quant_dllm.pipeline.teacher import Teacher
from quant_dllm.pipeline.tune import (
    KEPT_BYTES,
    PART_TOKENS,
    VISIT_TOKENS,
    EndToEndTuning,
    kept_bytes,
)
from quant_dllm.tuning.objective import HEAD_ROWS
from quant_dllm.weights.base import QuantizedWeight

REPEATS, ENOUGH_S = 3, 5.0  # runs of what is timed, and seconds after which one more is too many
COPIES = 7  # of a learned number: itself, its change, a gradient, two moments, the best, a sum
LOGITS = 4  # tables of logits that are in memory together


@dataclass(frozen=True)
class Few(Source):
    """A model that is cut off behind its first blocks."""

    few: int

    def empty(self) -> Network:
        """Build the network without what was cut off."""
        network = super().empty()
        network.blocks = network.blocks[: self.few]
        return network


@dataclass(frozen=True)
class Times:
    """Seconds of the parts of tuning, for the windows that were timed.

    Attributes:
        update: Learning from them.
        look: Measuring their loss.
        ask: Asking the 16-bit model about them.
        read: Reading that model, which is in the last.
    """

    update: float
    look: float
    ask: float
    read: float

    def grown(self, none: "Times", times: float) -> "Times":
        """Return the times of a model so many times as deep; ``none`` are those of no block."""

        def of(few: float, base: float) -> float:
            return base + max(few - base, 0.0) * times

        pairs = zip(vars(self).values(), vars(none).values(), strict=True)
        return Times(*(of(few, base) for few, base in pairs))


def time_tuning(job: Job, packed: Mapping[str, QuantizedWeight], outside: Outside) -> float:
    """Tell how long tuning will take, seconds.

    Args:
        job: One that tunes.
        packed: The layers of the first blocks, all of them, by slot.
        outside: Packed embedding and head.
    """
    settings, text = job.tuning, job.tuning_text
    assert settings and text, "it was asked whether the job tunes"
    length = text.windows.shape[1]
    windows = min(settings.batch, max(1, PART_TOKENS // length))
    blocks = 1 + max(int(slot.split(".")[1]) for slot in packed)
    few, none = (_timed(job, packed, outside, count, windows) for count in (blocks, 0))
    whole = few.grown(none, job.source.config.blocks / blocks)
    steps, parts = settings.steps, settings.batch / windows
    looks = 1 + -(-steps // settings.validate_every)
    visits = 1 + -(-steps // max(1, min(settings.round, VISIT_TOKENS // (settings.batch * length))))
    validation = len(text.validation) / windows
    asking = (steps * parts + validation) * max(whole.ask - whole.read, 0.0) + visits * whole.read
    return steps * parts * whole.update + looks * validation * whole.look + asking


def _timed(
    job: Job, packed: Mapping[str, QuantizedWeight], outside: Outside, blocks: int, windows: int
) -> Times:
    """Time the parts of tuning on a model of a few blocks, or none."""
    assert job.tuning and job.tuning_text, "it was asked whether the job tunes"
    whole = job.source
    source = Few(whole.name, whole.folder, whole.family, whole.config, blocks)
    model = DiffusionLM(source, _student(job, source, packed, outside), job.mask_token_id).eval()
    # the norm behind the last block learns even where there is no block
    settings = replace(job.tuning, batch=windows, norms=True)
    teacher = Teacher(source, job.device, job.dtype, settings.top)
    text = job.tuning_text.windows[:windows]
    run = EndToEndTuning(model, teacher, settings, text, text, job.seed)
    hidden = (torch.arange(text.shape[1]) % 2 == 0).expand(text.shape)  # half, as on average
    masked = (text.masked_fill(hidden, job.mask_token_id), hidden, text)
    (batch,) = run.ask([masked])
    run.update(0, batch)  # its memory is there for the next

    def read() -> None:
        network = read_outside(source, job.device, job.dtype)
        for index, empty in enumerate(network.blocks):
            read_block(source, index, empty, job.device, job.dtype)

    return Times(
        update=_seconds(job, lambda: run.update(0, batch)),
        look=_seconds(job, run.validate),
        ask=_seconds(job, lambda: run.ask([masked])),
        read=_seconds(job, read),
    )


def _student(
    job: Job, source: Source, packed: Mapping[str, QuantizedWeight], outside: Outside
) -> Network:
    """Build the packed model, cut off as its source is."""
    network = read_outside(source, job.device, job.dtype)
    for index, empty in enumerate(network.blocks):
        network.blocks[index] = read_block(source, index, empty, job.device, job.dtype)
    for slot, (weight, _) in outside.items():
        plain = network.get_submodule(slot)
        layer = (
            QuantEmbedding.of(weight, job.dtype)
            if isinstance(plain, torch.nn.Embedding)
            else QuantLinear.of(weight, getattr(plain, "bias", None))
        )
        network.set_submodule(slot, layer)
    for slot, weight in packed.items():
        if int(slot.split(".")[1]) < len(network.blocks):
            bias = getattr(network.get_submodule(slot), "bias", None)
            network.set_submodule(slot, QuantLinear.of(weight, bias))
    return network


def _seconds(job: Job, work: Callable[[], object]) -> float:
    """Time some work: the median of a few runs, or of as many as a few seconds hold."""
    found: list[float] = []
    while len(found) < REPEATS and sum(found) < ENOUGH_S:
        began = time.monotonic()
        work()
        if job.device.type == "cuda":
            torch.cuda.synchronize()
        found.append(time.monotonic() - began)
    return sorted(found)[len(found) // 2]


def tuning_bytes(job: Job, packed_bytes: int, held: int) -> int:
    """Guess the peak of tuning: the packed model, what is learned, and what gradients need.

    Args:
        job: One that tunes.
        packed_bytes: Of the packed model.
        held: By the process before.
    """
    settings, text, config = job.tuning, job.tuning_text, job.source.config
    assert settings and text, "it was asked whether the job tunes"
    length = text.windows.shape[1]
    tokens = min(PART_TOKENS, settings.batch * length)
    kept = min(kept_bytes(config, tokens), KEPT_BYTES)
    shapes = job.source.empty().state_dict()
    block, planes, learned = job.precision.block_size, math.ceil(job.precision.bits), 0
    for slot in job.source.layers:
        out, inputs = shapes[f"{slot}.weight"].shape
        learned += planes * (out * -(-inputs // block) + inputs)
    round_tokens = settings.batch * length * settings.round
    visit = max(tokens, min(round_tokens, max(VISIT_TOKENS, settings.batch * length)))
    states = 2 * 4 * visit * config.width + 6 * visit // 2 * settings.top
    logits = 4 * LOGITS * min(HEAD_ROWS, tokens) * config.vocab
    teacher = sum(shapes[name].numel() for name in job.source.outside_blocks())
    teacher += sum(p.numel() for p in job.source.empty().blocks[0].parameters())
    known = packed_bytes + teacher * torch.empty(0, dtype=job.dtype).itemsize
    return round(held + known + kept + 4 * COPIES * learned + states + logits)
