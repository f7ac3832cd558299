"""The network: one bidirectional decoder in plain torch, parametrised by `BackboneConfig`.

Shape suffixes of locals:
    B  sequences    L  positions    D  width    H  heads    G  key-value heads    E  head width
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

STAGES = (
    ("attention.q", "attention.k", "attention.v"),
    ("attention.out",),
    ("mlp.gate", "mlp.up"),
    ("mlp.down",),
)
"""Linear layers of a block in the order in which they run; those of one stage share their input."""


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """The numbers that make one decoder: widths in channels, counts, and rules.

    Attributes:
        context: Longest sequence that the model was trained on, in tokens.
        norm_eps: Added to the mean square in RMSNorm (dimensionless).
        tied_head: Whether the head is the embedding.
    """

    width: int
    blocks: int
    heads: int
    kv_heads: int
    mlp_width: int
    vocab: int
    context: int
    rope_theta: float
    norm_eps: float
    tied_head: bool = False

    @property
    def head_width(self) -> int:
        """Channels of one head."""
        return self.width // self.heads


@dataclass(frozen=True)
class Rotary:
    """Cosines and sines of a run of positions, float32; made for a call, never stored in the model.

    A table kept as a buffer would be left uninitialised by loaders that fill only what is on disk.
    """

    cos: Float[Tensor, "length head"]
    sin: Float[Tensor, "length head"]

    @classmethod
    def of(cls, config: BackboneConfig, length: int, device: torch.device | str) -> "Rotary":
        """Tabulate positions ``0 … length - 1``."""
        even = torch.arange(0, config.head_width, 2, dtype=torch.float32, device=device)
        frequency = 1.0 / config.rope_theta ** (even / config.head_width)
        angle = torch.outer(torch.arange(length, dtype=torch.float32, device=device), frequency)
        angle = torch.cat((angle, angle), dim=-1)
        return cls(angle.cos(), angle.sin())

    def __call__(self, x: Float[Tensor, "b h length e"]) -> Float[Tensor, "b h length e"]:
        """Rotate the two halves of each head in float32, as LLaDA does."""
        full = x.float()
        left, right = full.chunk(2, dim=-1)
        turned = torch.cat((-right, left), dim=-1)
        return (full * self.cos + turned * self.sin).to(x.dtype)


class RMSNorm(nn.Module):
    """Divide by the root mean square, taken in float32, then scale each channel."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        """Normalise the last axis."""
        full = x.float()
        full = full * torch.rsqrt(full.square().mean(-1, keepdim=True) + self.eps)
        return full.to(x.dtype) * self.weight


class Attention(nn.Module):
    """Every position looks at every other: a denoiser has no past and no future."""

    def __init__(self, config: BackboneConfig):
        super().__init__()
        self.head_width = config.head_width
        queries, keys = config.heads * self.head_width, config.kv_heads * self.head_width
        self.q = nn.Linear(config.width, queries, bias=False)
        self.k = nn.Linear(config.width, keys, bias=False)
        self.v = nn.Linear(config.width, keys, bias=False)
        self.out = nn.Linear(queries, config.width, bias=False)

    def mix(
        self, x: Float[Tensor, "batch length width"], rotary: Rotary
    ) -> Float[Tensor, "batch length mixed"]:
        """Let the positions look at each other: the input of the output projection."""

        def heads(y_BLD: Tensor) -> Tensor:
            return y_BLD.unflatten(-1, (-1, self.head_width)).transpose(1, 2)

        q_BHLE, k_BGLE, v_BGLE = (
            rotary(heads(self.q(x))),
            rotary(heads(self.k(x))),
            heads(self.v(x)),
        )
        grouped = q_BHLE.shape[1] != k_BGLE.shape[1]
        mixed_BHLE = F.scaled_dot_product_attention(q_BHLE, k_BGLE, v_BGLE, enable_gqa=grouped)
        return mixed_BHLE.transpose(1, 2).flatten(2)

    def forward(
        self, x: Float[Tensor, "batch length width"], rotary: Rotary
    ) -> Float[Tensor, "batch length width"]:
        """Mix the positions and project the result."""
        return self.out(self.mix(x, rotary))


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, config: BackboneConfig):
        super().__init__()
        self.gate = nn.Linear(config.width, config.mlp_width, bias=False)
        self.up = nn.Linear(config.width, config.mlp_width, bias=False)
        self.down = nn.Linear(config.mlp_width, config.width, bias=False)

    def activate(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch mlp"]:
        """Gate the wide layer: the input of the projection down."""
        return F.silu(self.gate(x)) * self.up(x)

    def forward(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        """Transform each position alone."""
        return self.down(self.activate(x))


class Block(nn.Module):
    """Attention and MLP, each behind a norm and added to the residual stream."""

    def __init__(self, config: BackboneConfig):
        super().__init__()
        self.attention_norm = RMSNorm(config.width, config.norm_eps)
        self.attention = Attention(config)
        self.mlp_norm = RMSNorm(config.width, config.norm_eps)
        self.mlp = MLP(config)

    def forward(
        self, x: Float[Tensor, "batch length width"], rotary: Rotary
    ) -> Float[Tensor, "batch length width"]:
        """Add what this block has to say to the residual stream."""
        x = x + self.attention(self.attention_norm(x), rotary)
        return x + self.mlp(self.mlp_norm(x))

    def stage_inputs(
        self, x: Float[Tensor, "batch length width"], rotary: Rotary
    ) -> Iterator[Float[Tensor, "batch length some"]]:
        """Yield what the layers of each of the `STAGES` receive, running no farther than asked."""
        yield (y := self.attention_norm(x))
        yield (y := self.attention.mix(y, rotary))
        x = x + self.attention.out(y)
        yield (y := self.mlp_norm(x))
        yield self.mlp.activate(y)


class Backbone(nn.Module):
    """Embedding, blocks, norm, head."""

    def __init__(self, config: BackboneConfig):
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.blocks))
        self.norm = RMSNorm(config.width, config.norm_eps)
        if not config.tied_head:
            self.head = nn.Linear(config.width, config.vocab, bias=False)

    def rotary(self, length: int, device: torch.device | str) -> Rotary:
        """Tabulate the positions that `Block.forward` wants beside its input."""
        return Rotary.of(self.config, length, device)

    def hidden(self, input_ids: Int[Tensor, "batch length"]) -> Float[Tensor, "batch length width"]:
        """Run everything but the norm and the head."""
        x = self.embed(input_ids)
        rotary = self.rotary(input_ids.shape[1], x.device)
        for block in self.blocks:
            x = block(x, rotary)
        return x

    def project(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch vocab"]:
        """Run the norm and the head on what `hidden` gave, or on some of it."""
        x = self.norm(x)
        return F.linear(x, self.embed.weight) if self.config.tied_head else self.head(x)

    def forward(
        self, input_ids: Int[Tensor, "batch length"]
    ) -> Float[Tensor, "batch length vocab"]:
        """Score every token at every position."""
        return self.project(self.hidden(input_ids))
