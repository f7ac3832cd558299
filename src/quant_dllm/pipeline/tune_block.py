"""Tune the scales of one block; the loop behind `tuning.block_by_block`.

Both models' states stand in front of the block, and the full-precision model's behind it: they are
what the rounded block is to make of the states that the rounded model brings. So nothing is run but
this block, and what went wrong before it is made up for as far as its scales can.
"""

import logging
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn

from quant_dllm.distributed import gather_facts, mean_gradients, mean_over_ranks
from quant_dllm.linear import QuantLinear
from quant_dllm.pipeline.block import BlockWork
from quant_dllm.pipeline.spool import Spool
from quant_dllm.pipeline.stream import Stream
from quant_dllm.tuning.block_by_block import BlockByBlock
from quant_dllm.tuning.scales import freeze, thaw
from quant_dllm.tuning.schedule import rate_at

logger = logging.getLogger(__name__)

Piece = tuple[int, slice]
"""A batch of the stream, and some of its windows."""


def relative_error(
    y: Float[Tensor, "*batch width"], target: Float[Tensor, "*batch width"]
) -> Float[Tensor, ""]:
    """Return the squared error of a token's state over its square, mean over tokens.

    Whatever comes behind a block divides by the length of a token's state first.
    """
    y, target = y.float(), target.float()
    energy = target.square().sum(-1).clamp_min(torch.finfo(torch.float32).tiny)
    return ((y - target).square().sum(-1) / energy).mean()


class BlockTuning:
    """One block's tuning, on this process's share of the text.

    Args:
        work: The block; all of its layers are solved.
        stream: What flows into it.
        targets: The full-precision model's states behind it, batch by batch.
        settings: How.
    """

    def __init__(self, work: BlockWork, stream: Stream, targets: Spool, settings: BlockByBlock):
        self.work, self.settings = work, settings
        self.stream, self.targets = stream, targets
        pieces, every = list(_pieces(stream, settings.batch)), round(1 / settings.validation)
        self.held = pieces[every // 2 :: every] or pieces[-1:]
        self.shown = [piece for piece in pieces if piece not in self.held]
        self.updates = min(gather_facts(len(self.shown)))  # a pass, in every process

    def run(self) -> Iterator[list[float]]:
        """Tune; yield the errors on what is set aside, before and after each pass so far.

        At the end the layers are those of the best pass.
        """
        plain = self._thaw()
        learned = [p for p in self.work.block.parameters() if p.requires_grad]
        optimizer = torch.optim.Adam(learned, lr=self.settings.rate, betas=(0.9, 0.95))
        dice = torch.Generator().manual_seed(self.work.job.seed + self.work.index)
        curve, best = [self.validate()], [p.detach().clone() for p in learned]
        for i in range(self.settings.passes):
            order = torch.randperm(len(self.shown), generator=dice).tolist()
            for step, at in enumerate(order[: self.updates], i * self.updates):
                self._update(step, self.shown[at], optimizer)
            curve.append(self.validate())
            if curve[-1] <= min(curve):
                best = [p.detach().clone() for p in learned]
            yield curve
        for parameter, value in zip(learned, best, strict=True):
            parameter.data.copy_(value)
        self._freeze(plain)
        logger.info("block %d: relative error %.2e, %.2e once its scales are tuned",
                    self.work.index, curve[0], min(curve))  # fmt: skip

    @torch.no_grad()
    def validate(self) -> float:
        """Return the mean error on what is set aside, of all processes."""
        found = torch.stack([self._error(piece) for piece in self.held]).mean()
        mean_over_ranks([found])
        return found.item()

    def _error(self, piece: Piece) -> Tensor:
        batch, some = piece
        y = self.work.block(self.stream.states[batch][some], self.stream.sight)
        return relative_error(y, self.targets[batch][some])

    def _update(self, step: int, piece: Piece, optimizer: torch.optim.Optimizer) -> None:
        """Learn from a piece."""
        steps = self.settings.passes * self.updates
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, steps, self.settings.rate, self.settings.warmup)
        optimizer.zero_grad()
        with torch.enable_grad():
            self._error(piece).backward()
        mean_gradients(optimizer.param_groups[0]["params"])
        optimizer.step()

    def _thaw(self) -> dict[str, nn.Linear]:
        """Put learnable layers in the places of plain ones; return those."""
        block, plain = self.work.block, {}
        for name, packed in self.work.packed.items():
            plain[name] = block.get_submodule(name)
            block.set_submodule(name, QuantLinear.of(packed, plain[name].bias))
        block.requires_grad_(False)
        thaw(block)
        return plain

    def _freeze(self, plain: dict[str, nn.Linear]) -> None:
        """Put the plain layers back, of the weights that were learned."""
        block = self.work.block
        freeze(block)
        for name, layer in plain.items():
            tuned = block.get_submodule(name)
            assert isinstance(tuned, QuantLinear), "it was learned"
            block.set_submodule(name, layer)
            self.work.place(name, tuned.weight)


def _pieces(stream: Stream, windows: int) -> Iterator[Piece]:
    """Cut the batches of a stream into pieces of some windows, two at least."""
    size = min(windows, max(1, sum(stream.windows.values()) // 2))
    for batch, count in stream.windows.items():
        for start in range(0, count, size):
            yield batch, slice(start, min(start + size, count))
