"""What the head receives behind the blocks, which it is rounded by."""

from collections.abc import Iterator

import torch
from torch import Tensor

from quant_dllm.distributed import rank
from quant_dllm.models.load import place
from quant_dllm.models.network import Network
from quant_dllm.pipeline.entry import batches, open_streams
from quant_dllm.pipeline.job import Job
from quant_dllm.pipeline.journal import Journal
from quant_dllm.pipeline.stream import Stream
from quant_dllm.statistics.layer import LayerStatistics, Needs
from quant_dllm.statistics.reduction import Tree, reduce_accounts


@torch.no_grad()
def head_statistics(job: Job, journal: Journal, memory: int) -> LayerStatistics | None:
    """Account for what the head receives where tokens are masked; that is all it is asked for.

    Args:
        job: What is quantized.
        journal: Of a run all of whose blocks are finished.
        memory: Bytes of hidden states that may be in memory.

    Returns:
        Nothing where the head is not rounded by it, and in processes that do not round it.
    """
    if not job.head_behind:
        return None
    network, asked = job.source.empty(), Positions(job)
    stream, full = open_streams(job, network, journal, {}, memory)
    assert stream is not None, "a head that is rounded behind the blocks has text to see"
    network = _norm(job, network)
    twins = full if Needs.DRIFT in job.outside.needs else None
    tree = Tree()
    for shard in stream.shards:
        account = tree.begin()
        for batch in shard:
            x, twin = (asked.inputs(network, some, batch) for some in (stream, twins))
            if x is not None and len(x):
                account.add(x, twin, keep=False)
        tree.push(account)
    (total,) = reduce_accounts(
        [tree.total()], [job.source.config.width], [[0]], job.outside.needs, rank(), job.device
    )
    return total.close(job.calibration.damping) if total.sums else None


class Positions:
    """The positions of the calibration text that are masked; all, where none is."""

    def __init__(self, job: Job):
        canvas, text = job.views
        hidden = canvas == job.mask_token_id
        self.hidden = hidden if hidden.any() else torch.ones_like(hidden)
        self.source = job.source
        ids, _ = job.source.empty().look(canvas, text)
        shards = batches(*ids.shape)
        self.views = {number: rows for shard in shards for number, rows in shard.items()}

    def inputs(self, network: Network, stream: Stream | None, batch: int) -> Tensor | None:
        """Return what the head receives [some, width] of one batch of a stream, if there is one."""
        if stream is None:
            return None
        sequence, row = self.source.rows(self.hidden[self.views[batch]])
        return network.head_inputs(stream.states[batch][sequence, row])


def _norm(job: Job, network: Network) -> Network:
    """Read what is outside the blocks but for embedding and head."""
    for name in _between(job, network):
        place(network, name, job.source.tensor(name), job.device, job.dtype)
    job.source.folder.close()
    return network


def _between(job: Job, network: Network) -> Iterator[str]:
    for name in job.source.outside_blocks():
        if name.rpartition(".")[0] not in network.outside:
            yield name
