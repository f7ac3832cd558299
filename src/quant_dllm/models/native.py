"""Masked encoders of transformers, wrapped so that they stream block by block like our own network.

Nothing of them is written again: embedding, layers and head are transformers' modules, called one
after the other. What the encoder hands each layer beside the states (masks, rotary tables; local
layers get others than global ones) differs between versions of transformers, so it is watched: a
twin of the model with a single narrow head runs on an empty canvas, and what its layers are called
with is what the real ones want. The twin also holds every computed buffer as it should be.
"""

from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from quant_dllm.models.network import Network, NetworkBlock
from quant_dllm.models.stage import Stage


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Where the parts of a masked language model of transformers are, by full path.

    Attributes:
        encoder: What maps token ids to the last states, through all of the next three.
        head: What stands between the last states and the embedding's transpose.
        embedding: The embedding's place in `NativeNetwork`, where ``embeddings`` is ``embed``.
        bias: Added to the logits.
    """

    encoder: str
    embeddings: str
    layers: str
    norm: str
    head: str
    embedding: str
    bias: str


@dataclass(frozen=True)
class Calls:
    """What each layer is called with beside the states, for a canvas of one length."""

    by_layer: list[tuple[tuple[Any, ...], dict[str, Any]]]


class NativeBlock(NetworkBlock):
    """One layer of transformers.

    Args:
        layer: It.
        index: Its number.
        stages: Its linear layers, named from here (``layer.…``).
    """

    def __init__(self, layer: nn.Module, index: int, stages: tuple[Stage, ...]):
        super().__init__()
        self.layer = layer
        self.index = index
        self._stages = stages

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Name the linear layers in the order in which they run."""
        return self._stages

    def forward(self, x: Float[Tensor, "batch length width"], sight: Calls) -> Tensor:
        """Call the layer as its encoder would."""

        def here(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            return value.to(x.device, x.dtype if value.is_floating_point() else value.dtype)

        args, kwargs = tree_map(here, sight.by_layer[self.index])
        found = self.layer(x, *args, **kwargs)
        return found[0] if isinstance(found, tuple) else found

    def stage_inputs(
        self, x: Tensor, sight: Calls, routes: Bool[Tensor, "tokens experts"] | None = None
    ) -> Generator[Iterable[Tensor], None, None]:
        """Run the layer once and yield what each stage's layers were called with."""
        seen: dict[str, Tensor] = {}
        leaders = [group.layers[0] for stage in self.stages for group in stage]

        def watch(name: str) -> Any:
            return lambda _, args: seen.__setitem__(name, args[0])

        hooks = [self.get_submodule(n).register_forward_pre_hook(watch(n)) for n in leaders]
        try:
            self(x, sight)
        finally:
            for hook in hooks:
                hook.remove()
        for stage in self.stages:
            yield [seen[group.layers[0]] for group in stage]


class TiedDecoder(nn.Module):
    """The transpose of the embedding, and a bias."""

    def __init__(self, bias: nn.Parameter):
        super().__init__()
        self.bias = bias

    def forward(self, x: Tensor, embedding: Float[Tensor, "vocab width"]) -> Tensor:
        """Score every token."""
        return F.linear(x, embedding, self.bias)


class NativeNetwork(Network):
    """A masked language model of transformers, taken apart.

    Args:
        model: It, with parameters on the meta device.
        twin: The same with one narrow head and a small vocabulary, for real.
        parts: Where its parts are.
        stages: The stages of each layer, named from the layer.
    """

    def __init__(
        self, model: nn.Module, twin: nn.Module, parts: Parts, stages: list[tuple[Stage, ...]]
    ):
        super().__init__()
        for name, buffer in twin.named_buffers():
            slot, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(slot), leaf, buffer)
        self.embed = model.get_submodule(parts.embeddings)
        layers: Iterable[nn.Module] = model.get_submodule(parts.layers).children()
        self.blocks = nn.ModuleList(
            NativeBlock(layer, i, stages[i]) for i, layer in enumerate(layers)
        )
        self.norm = model.get_submodule(parts.norm)
        self.head = model.get_submodule(parts.head)
        self.decoder = TiedDecoder(model.get_parameter(parts.bias))
        self.embedding = parts.embedding
        self.copies = {"decoder.weight": f"{parts.embedding}.weight"}
        self._twin = (twin.eval(), parts)  # in a tuple: it is no part of the model

    @torch.no_grad()
    def sight(self, length: int, device: torch.device | str) -> Calls:
        """Watch what the encoder hands its layers on an empty canvas of this length."""
        twin, parts = self._twin
        layers = list(twin.get_submodule(parts.layers).children())
        seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

        def watch(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            states = {"hidden_states"}  # first argument, or named
            seen.append((args[1:], {k: v for k, v in kwargs.items() if k not in states}))

        hooks = [m.register_forward_pre_hook(watch, with_kwargs=True) for m in layers]
        try:
            twin.get_submodule(parts.encoder)(torch.zeros(1, length, dtype=torch.long))
        finally:
            for hook in hooks:
                hook.remove()
        return Calls(seen)

    def project(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch vocab"]:
        """Run the last norm, the head and the decoder."""
        return self.decoder(self.head(self.norm(x)), self.get_parameter(f"{self.embedding}.weight"))
