"""Memory in large pages.

A packed weight is read once a call. In small pages, scattered over the memory as they come
to be, a processor waits for the page table several times as long as for the weight.
"""

import mmap
import threading

import torch
from torch import Tensor

LARGE = 2 << 20  # bytes of a large page
CHUNK = 32 << 20  # bytes that are asked of the system at a time
LINE = 64  # bytes of a cache line: where a weight begins
ADVICE = getattr(mmap, "MADV_HUGEPAGE", None)  # Linux

_lock = threading.Lock()
_chunk: Tensor | None = None
_used = 0


def mapped(count: int) -> Tensor:
    """Return `count` bytes of their own, [count] of uint8, in large pages if there are any.

    The last page may hold up to 2 MB more than was asked for.
    """
    if ADVICE is None:
        return torch.empty(count, dtype=torch.uint8)
    # from the system: what torch's allocator gives again has its small pages already
    whole = mmap.mmap(-1, count + 2 * LARGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    start = -torch.frombuffer(whole, dtype=torch.uint8).data_ptr() % LARGE
    whole.madvise(ADVICE, start, -(-count // LARGE) * LARGE)
    return torch.frombuffer(whole, dtype=torch.uint8, offset=start, count=count)


def room(count: int) -> Tensor:
    """Return `count` bytes, [count] of uint8, side by side with those asked for before.

    So weights that are no multiple of a large page fill them all the same. A chunk goes back to the
    system with the last weight in it; the newest one is kept for the next.
    """
    global _chunk, _used
    if count > CHUNK:
        return mapped(count)
    with _lock:
        if _chunk is None or _used + count > CHUNK:
            _chunk, _used = mapped(CHUNK), 0
        made = _chunk[_used : _used + count]
        _used += -(-count // LINE) * LINE
    return made
