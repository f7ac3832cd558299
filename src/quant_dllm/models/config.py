"""The numbers that make one network, whatever upstream calls them."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """A mixture of experts in place of a block's MLP.

    Attributes:
        experts: How many there are.
        chosen: How many of them see a token.
        width: Channels of one expert's wide layer.
        shared_width: The same of the expert that sees every token; 0: there is none.
        dense_blocks: Leading blocks that have a plain MLP instead.
        scores: How the router turns its logits into scores.
        bias: Whether a stored bias is added to the scores when experts are chosen, and only then.
        groups: Experts are chosen in groups: those whose two best scores add up highest.
        chosen_groups: How many groups are left to choose from.
        renormalise: Whether the scores of the chosen experts are made to sum to one.
        scale: Factor on the scores (dimensionless).
    """

    experts: int
    chosen: int
    width: int
    shared_width: int = 0
    dense_blocks: int = 0
    scores: Literal["softmax", "sigmoid"] = "softmax"
    bias: bool = False
    groups: int = 1
    chosen_groups: int = 1
    renormalise: bool = False
    scale: float = 1.0


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """The numbers that make one decoder: widths in channels, counts, and rules.

    Attributes:
        context: Longest sequence that the model was trained on, in tokens.
        norm_eps: Added to the mean square in RMSNorm (dimensionless).
        tied_head: Whether the head is the embedding.
        head_width: Channels of one head; ``width / heads`` if 0.
        rotary_width: Leading channels of a head that are rotated; all if 0.
        rotary_in_float32: Whether heads are rotated in float32, as LLaDA does; others cast sines
            and cosines to the dtype of the activations instead.
        fused_qkv: Whether queries, keys and values come from one layer.
        qkv_bias, out_bias: Whether these attention layers have biases.
        qk_norm: Whether the heads of queries and keys are normalised before they are rotated.
        attention_block: Length b of block-causal attention, in tokens: position i sees position j
            where ⌊j/b⌋ ≤ ⌊i/b⌋, counted from position 0 of the sequence. ``None``: all see all.
        mixture: Experts in place of the MLP.
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
    head_width: int = 0
    rotary_width: int = 0
    rotary_in_float32: bool = False
    fused_qkv: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: bool = False
    attention_block: int | None = None
    mixture: Mixture | None = None

    def __post_init__(self) -> None:
        """Fill in the widths that follow from others."""
        head = self.head_width or self.width // self.heads
        object.__setattr__(self, "head_width", head)
        object.__setattr__(self, "rotary_width", self.rotary_width or head)

    def has_experts(self, index: int) -> bool:
        """Tell whether a block has experts instead of a plain MLP."""
        return self.mixture is not None and index >= self.mixture.dense_blocks
