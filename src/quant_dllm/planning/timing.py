"""How long a run will take: its first block is quantized on part of the text, and thrown away."""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from quant_dllm.memory import PeakMemory
from quant_dllm.pipeline.job import Job
from quant_dllm.pipeline.journal import Journal
from quant_dllm.pipeline.outside import pack_outside
from quant_dllm.pipeline.quantize import POOL_BYTES, quantize_blocks
from quant_dllm.pipeline.signals import Stop
from quant_dllm.record import LayerRecord

SHARE = 4  # of the calibration text, one part in so many is looked at


@dataclass(frozen=True)
class Timing:
    """What the first block took.

    Attributes:
        setup: Seconds before the first layer is there: reading text, embedding it.
        rounding: Seconds of a block that do not depend on how much text there is.
        looking: Seconds of a block that grow with the text.
        share: How much more text the whole run looks at.
        memory: Peak memory, bytes.
    """

    setup: float
    rounding: float
    looking: float
    share: float
    memory: int | None

    def seconds(self, blocks: int) -> float:
        """Tell the time of a whole run."""
        return self.share * (self.setup + blocks * self.looking) + blocks * self.rounding


def time_one_block(job: Job) -> Timing:
    """Quantize the first block, up to the first layer of the second one.

    The time from one block's first layer to the next one's is a whole turn of the loop.
    """
    part, share = job, 1.0
    if job.windows is not None:
        few = max(1, len(job.windows) // SHARE)
        part, share = replace(job, windows=job.windows[:few]), len(job.windows) / few
    a_block = len(job.source.layers) // job.source.config.blocks
    peak, began = PeakMemory(job.device.type), time.monotonic()
    records: list[LayerRecord] = []
    arrived: list[float] = []
    with TemporaryDirectory() as folder, Journal(Path(folder) / "timed", {}, {}) as journal:
        for record in quantize_blocks(part, journal, Stop(), pack_outside(part), POOL_BYTES):
            records.append(record)
            arrived.append(time.monotonic() - began)
            if len(records) > a_block:
                break
    rounding = sum(record.seconds for record in records[:a_block])
    setup = arrived[0] - records[0].seconds
    turn = (arrived[-1] - arrived[0]) * a_block / max(len(records) - 1, 1)
    return Timing(setup, rounding, max(turn - rounding, 0.0), share, peak.process)
