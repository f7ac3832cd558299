"""What the pipeline asks of a network, ours or a wrapped one, and of each of its blocks."""

from collections.abc import Generator, Iterable
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from quant_dllm.models.stage import Stage


class NetworkBlock(nn.Module):
    """A block: called with states and with what `Network.sight` gave.

    Attributes:
        resumable: Whether a stage's layers may be replaced while `stage_inputs` waits behind them:
            it goes on with the new ones, and returns what the block returns.
    """

    resumable: bool = False

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Name the linear layers in the order in which they run."""
        raise NotImplementedError

    def stage_inputs(
        self, x: Tensor, sight: Any, routes: Bool[Tensor, "tokens experts"] | None = None
    ) -> Generator[Iterable[Tensor], None, Tensor | None]:
        """Yield what the groups of each stage receive, running no farther than asked.

        Args:
            x: In front of the block.
            sight: See `Network.sight`.
            routes: Which experts see which token; the router's own choice if not given.
        """
        raise NotImplementedError

    def routes(self, x: Tensor, sight: Any) -> Bool[Tensor, "tokens experts"] | None:
        """Tell which experts see which token; ``None`` in a block without experts."""
        return None


class Network(nn.Module):
    """An embedding, blocks, and what turns the last states into logits.

    Attributes:
        embed: Token ids in, states out; all that runs in front of the blocks.
        blocks: `NetworkBlock`.
        copies: Tensors that a checkpoint may hold although they are others again: tied heads.
        outside: Slots of embedding and head, where they can be packed.
    """

    embed: Any
    blocks: nn.ModuleList
    copies: dict[str, str]
    outside: tuple[str, ...] = ()

    def sight(self, length: int, device: torch.device | str) -> Any:
        """Tabulate what blocks want beside their input, for a canvas of this length."""
        raise NotImplementedError

    def look(
        self, canvas: Int[Tensor, "batch length"], text: Int[Tensor, "batch length"]
    ) -> tuple[Int[Tensor, "batch some"], Any]:
        """Return what goes in so that each position sees what it sees when its turn comes.

        Args:
            canvas: A masked text.
            text: What it hides; `Source.rows` tells where positions are then predicted.

        Returns:
            Tokens, and the sight that they need.
        """
        return canvas, self.sight(canvas.shape[1], canvas.device)

    def hidden(
        self, input_ids: Int[Tensor, "batch length"], sight: Any = None
    ) -> Float[Tensor, "batch length width"]:
        """Run everything but what follows the blocks.

        Args:
            input_ids: Tokens.
            sight: That of a whole canvas if not given.
        """
        x = self.embed(input_ids)
        sight = sight or self.sight(input_ids.shape[1], input_ids.device)
        for block in self.blocks:
            x = block(x, sight)
        return x

    def project(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch vocab"]:
        """Turn what `hidden` gave, or some of it, into logits."""
        raise NotImplementedError

    def head_inputs(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        """Turn what `hidden` gave into what the head receives, where it is among `outside`."""
        raise NotImplementedError

    def forward(
        self, input_ids: Int[Tensor, "batch length"]
    ) -> Float[Tensor, "batch length vocab"]:
        """Score every token at every position."""
        return self.project(self.hidden(input_ids))

    def layers(self) -> list[str]:
        """List the slots of all linear layers that are quantized, in order."""
        return [
            f"blocks.{index}.{name}"
            for index, block in enumerate(self.blocks)
            for stage in block.stages  # type: ignore[union-attr]
            for group in stage
            for name in group.layers
        ]
