"""How positions look at each other.

Shape suffixes of locals:
    B  sequences    L  positions    D  width    H  heads    G  key-value heads    E  head width
    K  positions that are looked at
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from quant_dllm.models.cache import KeyValues
from quant_dllm.models.config import BackboneConfig
from quant_dllm.models.norm import RMSNorm
from quant_dllm.models.sight import Sight


class Attention(nn.Module):
    """Grouped-query attention; `Sight` says who sees whom."""

    def __init__(self, config: BackboneConfig):
        super().__init__()
        self.head_width = config.head_width
        queries, keys = config.heads * self.head_width, config.kv_heads * self.head_width
        self.widths = (queries, keys, keys)
        self.fused = config.fused_qkv
        if self.fused:
            self.qkv = nn.Linear(config.width, sum(self.widths), bias=config.qkv_bias)
        else:
            self.q = nn.Linear(config.width, queries, bias=config.qkv_bias)
            self.k = nn.Linear(config.width, keys, bias=config.qkv_bias)
            self.v = nn.Linear(config.width, keys, bias=config.qkv_bias)
        if config.qk_norm:
            self.q_norm = RMSNorm(self.head_width, config.norm_eps)
            self.k_norm = RMSNorm(self.head_width, config.norm_eps)
        self.normalised = config.qk_norm
        self.out = nn.Linear(queries, config.width, bias=config.out_bias)

    def project(self, x: Float[Tensor, "batch length width"]) -> list[Tensor]:
        """Return queries, keys and values, each [batch, heads, length, head]."""
        if self.fused:
            parts = self.qkv(x).split(self.widths, -1)
        else:
            parts = self.q(x), self.k(x), self.v(x)
        q_BLHE, k_BLGE, v_BLGE = (y.unflatten(-1, (-1, self.head_width)) for y in parts)
        if self.normalised:
            q_BLHE, k_BLGE = self.q_norm(q_BLHE), self.k_norm(k_BLGE)
        return [y.transpose(1, 2) for y in (q_BLHE, k_BLGE, v_BLGE)]

    def mix(
        self, x: Float[Tensor, "batch length width"], sight: Sight, kept: KeyValues | None = None
    ) -> Float[Tensor, "batch length mixed"]:
        """Let the positions look at each other: the input of the output projection."""
        q_BHLE, k_BGKE, v_BGKE = self.project(x)
        q_BHLE, k_BGKE = sight.rotary(q_BHLE), sight.rotary(k_BGKE)
        if kept is not None:
            k_BGKE, v_BGKE = (y[:, :, : sight.keys] for y in kept.put(sight.at, k_BGKE, v_BGKE))
        grouped = q_BHLE.shape[1] != k_BGKE.shape[1]
        mixed_BHLE = F.scaled_dot_product_attention(
            q_BHLE, k_BGKE, v_BGKE, attn_mask=sight.mask, enable_gqa=grouped
        )
        return mixed_BHLE.transpose(1, 2).flatten(2)

    def forward(
        self, x: Float[Tensor, "batch length width"], sight: Sight, kept: KeyValues | None = None
    ) -> Float[Tensor, "batch length width"]:
        """Mix the positions and project the result."""
        return self.out(self.mix(x, sight, kept))
