"""What a block does to each position alone: one wide layer."""

from collections.abc import Generator, Iterable

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from quant_dllm.models.stage import Group, Stage


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, width: int, mlp_width: int):
        super().__init__()
        self.gate = nn.Linear(width, mlp_width, bias=False)
        self.up = nn.Linear(width, mlp_width, bias=False)
        self.down = nn.Linear(mlp_width, width, bias=False)

    def activate(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch mlp"]:
        """Gate the wide layer: the input of the projection down."""
        return F.silu(self.gate(x)) * self.up(x)

    def forward(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        """Transform each position alone."""
        return self.down(self.activate(x))

    def stages(self, name: str, norm: str) -> tuple[Stage, Stage]:
        """Name the layers into the MLP and the layer out of it.

        Args:
            name: The MLP's slot in the block.
            norm: The slot of the norm in front of it.
        """
        into = Group((f"{name}.gate", f"{name}.up"), norm)
        return (into,), (Group((f"{name}.down",), f"{name}.up"),)

    def stage_inputs(
        self, x: Float[Tensor, "*batch width"], routes: Bool[Tensor, "tokens experts"] | None
    ) -> Generator[Iterable[Tensor], None, Tensor]:
        """Yield what the groups of each of the stages receive; nothing is routed here."""
        yield (x,)
        yield ((x := self.activate(x)),)
        return self.down(x)
