"""Which linear layers of a block are quantized together, and in what order."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Group:
    """Linear layers that receive the same tensor: one account of its statistics serves them all.

    Attributes:
        layers: Their slots in the block.
        producer: What stands in front and may carry the inverse of an input scale, since each of
            its output channels is one input channel of these layers, and of no others.
        routed: Whether they see only the tokens that a router sends them.
    """

    layers: tuple[str, ...]
    producer: str | None = None
    routed: bool = False


Stage = tuple[Group, ...]
"""Groups whose inputs are there at the same time; what a stage receives depends on those before.

A block has four: into the attention, out of it, into the MLP, out of it. A dense block has one
group in each; a block of experts has one for every expert.
"""

STAGE_ORDERS = {
    "standard": (0, 1, 2, 3),
    "outputs-first": (1, 3, 0, 2),  # the release on LLaDA: attn_out, ff_out, then the rest
}
"""Orders in which the four stages are quantized."""
