"""Add accounts of shards of the text so that the bits do not depend on who gathered which.

Float sums depend on their order. The text is cut into `SHARDS` shards however many processes there
are; the accounts of two neighbours are added, then those of two pairs, and so on. A process that
holds a power of two of neighbouring shards computes a whole subtree, and the processes together
the rest of the tree.

Up to four accounts of eight shards are there at once. Where memory has no room for so many, all but
the one under way wait on disk.
"""

from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
import torch

from quant_dllm.distributed import join_to, receive, send, sum_counts, sum_to, world
from quant_dllm.statistics.layer import Account, Needs

SHARDS = 8
ACCOUNT_BYTES = 4 << 30  # second moments that are gathered in one pass over the text


def shards() -> int:
    """Count the shards of the text: `SHARDS`, or the processes where they are more."""
    return max(SHARDS, world())


@dataclass
class Tree:
    """Accounts of the shards so far: those of whole subtrees, the largest first.

    Attributes:
        folder: Where accounts wait for their neighbours; ``None``: in memory.
    """

    folder: Path | None = None
    subtrees: list[tuple[int, "Account | Waiting"]] = field(default_factory=list)

    def begin(self) -> Account:
        """Return an empty account for the next shard, and make room for it."""
        if self.folder:
            for i, (height, account) in enumerate(self.subtrees):
                if isinstance(account, Account):
                    self.subtrees[i] = (height, Waiting(account, self.folder))
        return Account()

    def push(self, account: Account) -> None:
        """Add the account of the next shard."""
        height = 0
        while self.subtrees and self.subtrees[-1][0] == height:
            account, height = self.subtrees.pop()[1].merge(account), height + 1
        self.subtrees.append((height, account))

    def total(self) -> Account:
        """Return the account of all shards; they were a power of two."""
        ((_, account),) = self.subtrees
        assert isinstance(account, Account), "nothing was begun behind the last shard"
        return account


class Waiting:
    """An account whose sums wait in a file without a name: it goes with this process at the latest.

    Args:
        account: It is emptied.
        folder: On which disk.
    """

    def __init__(self, account: Account, folder: Path):
        self.rest = account
        self.file = TemporaryFile(dir=folder)  # noqa: SIM115 - `merge` closes it
        self.shapes = {name: tensor.shape for name, tensor in account.sums.items()}
        for name in self.shapes:
            account.sums.pop(name).cpu().numpy().tofile(self.file)

    def merge(self, later: Account) -> Account:
        """Return the account with that of the tokens that follow taken in, one sum at a time."""
        with self.file as file:
            file.seek(0)
            for name, shape in self.shapes.items():
                found = np.fromfile(file, dtype=np.float32, count=shape.numel())
                sums = torch.from_numpy(found).view(shape)
                if name in later.sums:
                    term = later.sums.pop(name)
                    sums = term.add_(sums.to(term.device))
                self.rest.sums[name] = sums
        return self.rest.merge(later)


def reduce_accounts(
    accounts: list[Account], channels: list[int], owners: list[list[int]], needs: Needs,
    rank: int, device: torch.device,
) -> list[Account]:  # fmt: skip
    """Sum accounts over all processes for their owners; the others learn the tokens alone.

    Args:
        accounts: One a group of layers, of this process's shards.
        channels: Input channels of each group.
        owners: Processes that want the sum of each group.
        needs: What was gathered.
        rank: This process.
        device: Where the sums are.
    """
    tokens = sum_counts([account.tokens for account in accounts])
    if world() > 1:
        for account, width, some in zip(accounts, channels, owners, strict=True):
            _reduce(account, width, some, needs, rank, device)
    for account, count in zip(accounts, tokens, strict=True):
        account.tokens = count
    return accounts


def _reduce(
    account: Account, width: int, owners: list[int], needs: Needs, rank: int, device: torch.device
) -> None:
    """Sum one account at its first owner, who hands it to the others."""
    first, *others = owners
    shapes = {"moment": (width, width), "magnitude": (width,)}
    if Needs.DRIFT in needs:
        shapes["drift"] = (width, width)
    found = {}
    for name, shape in shapes.items():
        mine = account.sums.pop(name, None)
        mine = torch.zeros(shape, device=device) if mine is None else mine
        found[name] = _hand_on(sum_to(mine, first), mine, first, others, rank)
    if Needs.SAMPLES in needs:
        rows = torch.cat(account.kept) if account.kept else torch.zeros(0, width, device=device)
        joined = join_to(rows, first)
        found["samples"] = _hand_on_rows(joined, width, first, others, rank, device)
        account.kept = [] if found["samples"] is None else [found["samples"]]
    account.sums = {n: t for n, t in found.items() if t is not None and n != "samples"}


def _hand_on(
    total: torch.Tensor | None, like: torch.Tensor, first: int, others: list[int], rank: int
) -> torch.Tensor | None:
    if rank == first:
        assert total is not None, "the owner has the sum"
        for other in others:
            send(total, other)
    elif rank in others:
        return receive(like, first)
    return total


def _hand_on_rows(
    rows: torch.Tensor | None, width: int, first: int, others: list[int], rank: int,
    device: torch.device,
) -> torch.Tensor | None:  # fmt: skip
    count = torch.tensor([0 if rows is None else len(rows)])
    if rank == first:
        assert rows is not None, "the owner has the rows"
        for other in others:
            send(count, other)
            send(rows, other)
    elif rank in others:
        receive(count, first)
        return receive(torch.empty(int(count), width, device=device), first)
    return rows
