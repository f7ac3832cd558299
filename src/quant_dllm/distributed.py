"""Many processes under ``torchrun`` or ``--gpus``, or one: then every function here does nothing.

What is sent is tensors and JSON, never pickles. Sums over processes are made pairwise, neighbours
first, so that their bits depend on what is summed and not on how many processes share it.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from quant_dllm import errors
from quant_dllm.errors import PeerLost, QuantDLLMError, RequestError
from quant_dllm.track import Track

T = TypeVar("T")


def rank() -> int:
    """Return this process's number."""
    return dist.get_rank() if _many() else 0


def world() -> int:
    """Count the processes."""
    return dist.get_world_size() if _many() else 1


@contextmanager
def processes() -> Iterator[None]:
    """Join the other processes that ``torchrun`` or ``--gpus`` started, if there are any.

    Raises:
        RequestError: Their number is no power of two.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if _many() or "RANK" not in os.environ or count == 1:
        yield
        return
    if count & (count - 1):
        raise RequestError(
            f"{count} processes cannot share the calibration text evenly; 1, 2, 4, 8 … are wanted."
        )
    with _peers():
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def local_device(device: torch.device) -> torch.device:
    """Return the accelerator of this process where only a kind was asked for."""
    if device.type == "cuda" and device.index is None and _many():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return device


def broadcast_facts(facts: Any, source: int) -> Any:
    """Return what one process has, in JSON's types, on all of them."""
    if not _many():
        return facts
    data = torch.frombuffer(bytearray(json.dumps(facts).encode()), dtype=torch.uint8)
    size = torch.tensor([len(data)])
    with _peers():
        dist.broadcast(size, source)
        if rank() != source:
            data = torch.empty(int(size), dtype=torch.uint8)
        dist.broadcast(data, source)
    return facts if rank() == source else json.loads(data.numpy().tobytes())


def broadcast_tensors(
    tensors: dict[str, Tensor] | None, source: int, device: torch.device
) -> dict[str, Tensor]:
    """Return the tensors of one process on all of them."""
    if not _many():
        assert tensors is not None, "there is no other process"
        return tensors
    mine = tensors or {}
    shapes = {k: [str(t.dtype).removeprefix("torch."), *t.shape] for k, t in mine.items()}
    found = {}
    with _peers():
        for name, (dtype, *shape) in broadcast_facts(shapes, source).items():
            like = torch.empty(shape, dtype=getattr(torch, dtype), device=device)
            found[name] = mine[name].contiguous() if rank() == source else like
            dist.broadcast(_bytes(found[name]), source)
    return found


def from_first(work: Callable[[], Any]) -> Any:
    """Do some work in the first process alone; return what it gives, in JSON's types, on all.

    Raises:
        QuantDLLMError: What the work raised, on all.
    """
    if not _many():
        return work()
    told = None
    if rank() == 0:
        try:
            told = {"value": work()}
        except QuantDLLMError as error:
            told = {"error": type(error).__name__, "message": str(error)}
    told = broadcast_facts(told, 0)
    if "error" in told:
        raise getattr(errors, told["error"])(told["message"])
    return told["value"]


def gather_facts(facts: Any) -> list[Any]:
    """Return what each process has, in JSON's types, in the order of their numbers."""
    return [broadcast_facts(facts, source) for source in range(world())]


def spread(
    items: Iterable[T], work: Callable[[T], Any], track: Track, what: str, total: int
) -> list[Any]:
    """Do some work on every item, each process on its share; return all results on all of them.

    Args:
        items: The same on all processes.
        work: Gives JSON's types; floats keep every bit.
        track: Watches this process's share.
        what: What it is called there.
        total: How many items there are, about.
    """
    share = islice(items, rank(), None, world())
    found = gather_facts([work(item) for item in track(share, what, -(-total // world()))])
    return [found[i % world()][i // world()] for i in range(sum(map(len, found)))]


def any_rank(mine: bool) -> bool:
    """Tell whether something holds in any process."""
    return bool(sum_counts([int(mine)])[0])


def sum_counts(counts: list[int]) -> list[int]:
    """Add whole numbers over all processes."""
    if not _many():
        return counts
    found = torch.tensor(counts)
    with _peers():
        dist.all_reduce(found)
    return found.tolist()


def sum_to(tensor: Tensor, owner: int) -> Tensor | None:
    """Add a tensor [*] over all processes; return the sum to its owner. It is changed in place.

    Neighbours are added first, then pairs of neighbours, and so on.
    """
    for partner, sends in _pairs(owner):
        if sends:
            send(tensor, partner)
            return None
        tensor.add_(receive(torch.empty_like(tensor), partner))
    return tensor


def join_to(rows: Tensor, owner: int) -> Tensor | None:
    """Lay the rows of all processes end to end, in the order of their numbers, at one of them."""
    for partner, sends in _pairs(owner):
        if sends:
            send(torch.tensor([len(rows)]), partner)
            send(rows, partner)
            return None
        count = int(receive(torch.empty(1, dtype=torch.long), partner))
        theirs = receive(rows.new_empty(count, *rows.shape[1:]), partner)
        rows = torch.cat((rows, theirs) if rank() < partner else (theirs, rows))
    return rows


def send(tensor: Tensor, to: int) -> None:
    """Send a tensor to another process."""
    with _peers():
        dist.send(tensor.contiguous(), to)


def receive(like: Tensor, source: int) -> Tensor:
    """Fill a tensor with what another process sends."""
    with _peers():
        dist.recv(like, source)
    return like


def mean_over_ranks(tensors: list[Tensor]) -> None:
    """Replace tensors by their mean over all processes, in one exchange."""
    if not _many():
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    with _peers():
        dist.all_reduce(flat)
    flat /= world()
    at = 0
    for tensor in tensors:
        tensor.copy_(flat[at : at + tensor.numel()].view_as(tensor))
        at += tensor.numel()


def mean_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace gradients by their mean over all processes; one that a process lacks is zero.

    An expert may have been chosen in another process alone.
    """
    if not _many():
        return
    found = []
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        found.append(parameter.grad)
    mean_over_ranks(found)


def _pairs(owner: int) -> Iterator[tuple[int, bool]]:
    """Walk up the tree of pairs that ends at the owner: with whom, and whether to send to it.

    Numbers are exclusive-ored with the owner's, which leaves every pair together.
    """
    mine, step = rank() ^ owner, 1
    while step < world():
        yield mine ^ step ^ owner, bool(mine & step)
        step <<= 1


def _bytes(tensor: Tensor) -> Tensor:
    """View a tensor as what every backend can send."""
    return tensor.view(torch.uint8) if tensor.ndim else tensor


def _many() -> bool:
    return dist.is_available() and dist.is_initialized()


@contextmanager
def _peers() -> Iterator[None]:
    """Say in one line that another process is gone."""
    try:
        yield
    except (RuntimeError, dist.DistError) as error:
        reason = str(error).strip().splitlines()[0]
        raise PeerLost(
            f"process {rank()} lost the others ({reason[:120]}); one of them ended. "
            "Run it again: a quantization goes on where it stopped."
        ) from None
