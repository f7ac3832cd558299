"""Watch one forward pass of a network that nobody described: who is called, in what order, on what.

Names say little about a network; its calls say it all. Layers that are called with the very same
tensor share their statistics, a norm stands in front of what is called with its output, and what a
change of one token reaches tells who sees whom.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn


@dataclass(frozen=True)
class Call:
    """A module that was called.

    Attributes:
        name: Its path.
        module: It has no children.
        input, output: Numbers of tensors; equal numbers, the same tensor.
    """

    name: str
    module: nn.Module
    input: int
    output: int

    @property
    def is_linear(self) -> bool:
        """Tell whether it is a linear layer."""
        return isinstance(self.module, nn.Linear)

    @property
    def is_norm(self) -> bool:
        """Tell whether it scales channels and does nothing else that is stored."""
        shapes = [p.ndim for p in self.module.parameters()]
        return not self.is_linear and shapes == [1]


@torch.no_grad()
def watch(model: nn.Module, run: Callable[[], object]) -> list[Call]:
    """Return the calls of all leaves of a model during ``run``, in order."""
    kept: list[Tensor] = []  # no memory is given to another tensor while we look
    calls: list[Call] = []

    def number(tensor: Tensor) -> int:
        for i, known in enumerate(kept):
            same = known.data_ptr() == tensor.data_ptr() and known.numel() == tensor.numel()
            if known is tensor or same:
                return i
        kept.append(tensor)
        return len(kept) - 1

    def note(name: str, module: nn.Module) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple, kwargs: dict, output: object) -> None:
            tensors = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
            if tensors and isinstance(output, Tensor):
                calls.append(Call(name, module, number(tensors[0]), number(output)))

        return hook

    hooks = [
        module.register_forward_hook(note(name, module), with_kwargs=True)
        for name, module in model.named_modules()
        if not any(True for _ in module.children()) and any(True for _ in module.parameters())
    ]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return calls


@torch.no_grad()
def attention_block(
    logits: Callable[[Tensor], Float[Tensor, "batch length vocab"]], length: int, vocab: int
) -> int | None:
    """Find out who sees whom by changing one token at a time.

    Args:
        logits: The network.
        length: Tokens to try; blocks of attention up to this length are found.
        vocab: Tokens that there are.

    Returns:
        Length of block-causal attention; 1 for causal attention, ``None`` if all see all.
    """
    ids = torch.randint(2, vocab, (1, length), generator=torch.Generator().manual_seed(0))
    changed = ids.repeat(length, 1)
    at = torch.arange(length)
    changed[at, at] = (changed[at, at] - 1) % (vocab - 2) + 2
    found = logits(torch.cat((ids, changed)))  # in one batch: what is not reached is equal
    moved = (found[1:] - found[:1]).abs().amax(-1) > 0
    first = moved.long().argmax(1)  # first row that token j reaches
    if not bool(first.any()):
        return None
    return int((at - first).max()) + 1
