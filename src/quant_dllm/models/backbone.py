"""The network: one denoising decoder in plain torch, parametrised by `BackboneConfig`."""

from collections.abc import Generator, Iterable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from quant_dllm.embedding import QuantEmbedding
from quant_dllm.models.attention import Attention
from quant_dllm.models.cache import KeyValues
from quant_dllm.models.config import BackboneConfig
from quant_dllm.models.experts import Experts
from quant_dllm.models.mlp import MLP
from quant_dllm.models.network import Network, NetworkBlock
from quant_dllm.models.norm import RMSNorm
from quant_dllm.models.sight import Sight
from quant_dllm.models.stage import Group, Stage


class Block(NetworkBlock):
    """Attention and MLP, each behind a norm and added to the residual stream."""

    def __init__(self, config: BackboneConfig, index: int = 0):
        super().__init__()
        self.attention_norm = RMSNorm(config.width, config.norm_eps)
        self.attention = Attention(config)
        self.mlp_norm = RMSNorm(config.width, config.norm_eps)
        if config.mixture and config.has_experts(index):
            self.mlp = Experts(config.width, config.mixture)
        else:
            self.mlp = MLP(config.width, config.mlp_width)
            self.resumable = True

    def forward(
        self, x: Float[Tensor, "batch length width"], sight: Sight, kept: KeyValues | None = None
    ) -> Float[Tensor, "batch length width"]:
        """Add what this block has to say to the residual stream."""
        x = x + self.attention(self.attention_norm(x), sight, kept)
        return x + self.mlp(self.mlp_norm(x))

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Name the linear layers in the order in which they run."""
        if self.attention.fused:
            into, out = Group(("attention.qkv",), "attention_norm"), Group(("attention.out",))
        else:
            # between values and output projection there is only a weighted mean: a scale passes
            into = Group(("attention.q", "attention.k", "attention.v"), "attention_norm")
            out = Group(("attention.out",), "attention.v")
        return ((into,), (out,), *self.mlp.stages("mlp", "mlp_norm"))

    def stage_inputs(
        self,
        x: Float[Tensor, "batch length width"],
        sight: Sight,
        routes: Bool[Tensor, "tokens experts"] | None = None,
    ) -> Generator[Iterable[Tensor], None, Tensor | None]:
        """Yield what the groups of each stage receive; see `NetworkBlock.stage_inputs`."""
        yield ((y := self.attention_norm(x)),)
        yield ((y := self.attention.mix(y, sight)),)
        x = x + self.attention.out(y)
        y = yield from self.mlp.stage_inputs(self.mlp_norm(x), routes)
        return None if y is None else x + y

    def routes(
        self, x: Float[Tensor, "batch length width"], sight: Sight
    ) -> Bool[Tensor, "tokens experts"] | None:
        """Tell which experts see which token; ``None`` in a block without experts."""
        if not isinstance(self.mlp, Experts):
            return None
        return self.mlp.routes(self.mlp_norm(x + self.attention(self.attention_norm(x), sight)))


class Backbone(Network):
    """Embedding, blocks, norm, head."""

    def __init__(self, config: BackboneConfig):
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab, config.width)
        self.blocks = nn.ModuleList(Block(config, i) for i in range(config.blocks))
        self.norm = RMSNorm(config.width, config.norm_eps)
        self.copies = {"head.weight": "embed.weight"} if config.tied_head else {}
        if not config.tied_head:
            self.head = nn.Linear(config.width, config.vocab, bias=False)
        self.outside = ("embed",) if config.tied_head else ("embed", "head")

    def sight(self, length: int, device: torch.device | str) -> Sight:
        """Tabulate what `Block.forward` wants beside its input, for a canvas of this length."""
        return Sight.of(self.config, length, device)

    def look(
        self, canvas: Int[Tensor, "batch length"], text: Int[Tensor, "batch length"]
    ) -> tuple[Int[Tensor, "batch some"], Sight]:
        """Put the text behind its masked copy where attention is block-causal."""
        if not self.config.attention_block:
            return super().look(canvas, text)
        sight = Sight.teacher(self.config, canvas.shape[1], canvas.device)
        return torch.cat((canvas, text), dim=1), sight

    def hidden(
        self,
        input_ids: Int[Tensor, "batch length"],
        sight: Sight | None = None,
        kept: list[KeyValues] | None = None,
    ) -> Float[Tensor, "batch length width"]:
        """Run everything but the norm and the head.

        Args:
            input_ids: Tokens of all positions, or of those that ``sight`` looks from.
            sight: The whole canvas if not given.
            kept: Keys and values of other positions, one a block; they are updated.
        """
        x = self.embed(input_ids)
        sight = sight or self.sight(input_ids.shape[1], x.device)
        for block, past in zip(self.blocks, kept or [None] * len(self.blocks), strict=True):
            x = block(x, sight, past)
        return x

    def head_inputs(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        """Run the norm."""
        return self.norm(x)

    def project(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch vocab"]:
        """Run the norm and the head on what `hidden` gave, or on some of it."""
        x = self.head_inputs(x)
        if not self.config.tied_head:
            return self.head(x)
        if isinstance(self.embed, QuantEmbedding):
            return self.embed.scores(x)
        weight = self.embed.weight  # the last block may be on another device than the embedding
        return F.linear(x.to(weight.device), weight)
