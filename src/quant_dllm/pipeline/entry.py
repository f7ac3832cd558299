"""The calibration text on its way into the first block, or as an earlier run left it."""

import copy
from itertools import accumulate

import torch
from torch import Tensor, nn

from quant_dllm.distributed import gather_facts, rank, world
from quant_dllm.embedding import QuantEmbedding
from quant_dllm.models.load import place, place_buffers
from quant_dllm.models.network import Network
from quant_dllm.pipeline.job import Job
from quant_dllm.pipeline.journal import Journal
from quant_dllm.pipeline.outside import Outside
from quant_dllm.pipeline.spool import Pool, Spool
from quant_dllm.pipeline.stream import Stream
from quant_dllm.statistics.layer import Needs
from quant_dllm.statistics.reduction import shards

BATCH_TOKENS = 4096  # tokens that go through a block at once
STREAM, FULL = "stream", "full"


def open_streams(
    job: Job, network: Network, journal: Journal, outside: Outside, memory: int
) -> tuple[Stream | None, Stream | None]:
    """Return the stream of the model that is quantized, and that of the 16-bit one if it is wanted.

    Args:
        job: What is asked for.
        network: On the meta device.
        journal: What was saved before.
        outside: The embedding, if it is packed.
        memory: Bytes of hidden states that may be in memory.
    """
    if job.windows is None or job.needs == Needs.NOTHING:
        return None, None
    names = (STREAM, FULL) if Needs.DRIFT in job.needs else (STREAM,)
    found, pool = journal.states(), Pool(memory)
    spools = {name: Spool(journal.folder, name, pool, job.device) for name in names}
    if found is None:
        ids, sight = network.look(*(ids.to(job.device) for ids in job.views))
        count, length = ids.shape
        numbers = batches(count, length)
        with journal.explained():
            _fill(job, network, ids, numbers, spools, outside)
        files = {n: d for spool in spools.values() for n, d in spool.turn(0).items()}
        save_states(journal, 0, files, count)
    else:
        first = job.windows[:1].to(job.device)
        ids, sight = network.look(first, first)
        numbers = batches(journal.views, ids.shape[1])
        for spool in spools.values():
            spool.digests = found
            spool.turn(len(journal.blocks))
    shares = list(mine(numbers))
    sizes = {n: rows.stop - rows.start for shard in numbers for n, rows in shard.items()}
    windows = {batch: sizes[batch] for share in shares for batch in share}
    flows = [Stream(spool, shares, windows, sight) for spool in spools.values()]
    return flows[0], flows[1] if len(flows) > 1 else None


def save_states(
    journal: Journal, index: int, files: dict[str, str], views: int | None = None
) -> None:
    """Note the states in front of a block, of all processes: their files' checksums."""
    everyone = {name: digest for some in gather_facts(files) for name, digest in some.items()}
    journal.save_states(index, everyone, views)


def batches(views: int, length: int) -> list[dict[int, slice]]:
    """Cut views of some tokens into shards, and those into numbered batches.

    They depend on the text alone, so that every number of processes computes the same.
    """
    size, found, number = max(1, BATCH_TOKENS // length), [], 0
    ends = [views * (i + 1) // shards() for i in range(shards())]
    for start, end in zip([0, *ends], ends, strict=False):
        starts = range(start, end, size)
        found.append({number + i: slice(s, min(s + size, end)) for i, s in enumerate(starts)})
        number += len(starts)
    return found


def mine(numbers: list[dict[int, slice]]) -> list[range]:
    """Return the numbers of the batches of each of this process's shards."""
    ends = list(accumulate(len(shard) for shard in numbers))
    ranges = [range(end - len(shard), end) for end, shard in zip(ends, numbers, strict=True)]
    share = len(numbers) // world()
    return ranges[rank() * share : (rank() + 1) * share]


@torch.no_grad()
def _fill(
    job: Job,
    network: Network,
    ids: Tensor,
    numbers: list[dict[int, slice]],
    spools: dict[str, Spool],
    outside: Outside,
) -> None:
    """Embed this process's batches; the 16-bit stream by the 16-bit embedding."""
    share = len(numbers) // world()
    for name, spool in spools.items():
        embed = read_embedding(job, network, {} if name == FULL else outside)
        for shard in numbers[rank() * share : (rank() + 1) * share]:
            for number, rows in shard.items():
                spool.put(number, embed(ids[rows]), 0)


def read_embedding(job: Job, network: Network, outside: Outside) -> nn.Module:
    """Load the embedding, or take the packed one."""
    if "embed" in outside:
        return QuantEmbedding.of(outside["embed"][0], job.dtype)
    embed = copy.deepcopy(network.embed).eval()
    for name in embed.state_dict():
        place(embed, name, job.source.tensor(f"embed.{name}"), job.device, job.dtype)
    place_buffers(embed, job.device)
    job.source.folder.close()
    return embed
