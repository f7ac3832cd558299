"""Where the positions of a call stand, and which positions each of them sees.

Two topologies: every position sees every other, or, block-causal, those of its own block and of the
blocks before it. Tables are made for a call and never stored in the model: a buffer would be left
uninitialised by loaders that fill only what is on disk.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from quant_dllm.models.config import BackboneConfig


@dataclass(frozen=True)
class Rotary:
    """Cosines and sines of some positions, float32.

    Attributes:
        full: Whether heads are rotated in float32; else the tables are cast to the heads' dtype.
    """

    cos: Float[Tensor, "length rotated"]
    sin: Float[Tensor, "length rotated"]
    full: bool = True

    def to(self, device: torch.device | str) -> "Rotary":
        """Return the tables on another device."""
        return Rotary(self.cos.to(device), self.sin.to(device), self.full)

    @classmethod
    def of(cls, config: BackboneConfig, positions: Int[Tensor, " length"]) -> "Rotary":
        """Tabulate positions, counted from 0."""
        even = torch.arange(0, config.rotary_width, 2, dtype=torch.float32, device=positions.device)
        frequency = 1.0 / config.rope_theta ** (even / config.rotary_width)
        angle = torch.outer(positions.float(), frequency)
        angle = torch.cat((angle, angle), dim=-1)
        return cls(angle.cos(), angle.sin(), config.rotary_in_float32)

    def __call__(self, x: Float[Tensor, "b h length e"]) -> Float[Tensor, "b h length e"]:
        """Rotate the two halves of each head's leading channels."""
        width = self.cos.shape[-1]
        head, rest = x[..., :width], x[..., width:]
        kind = torch.float32 if self.full else x.dtype
        head = head.to(kind)
        left, right = head.chunk(2, dim=-1)
        turned = torch.cat((-right, left), dim=-1)
        head = (head * self.cos.to(kind) + turned * self.sin.to(kind)).to(x.dtype)
        return torch.cat((head, rest), dim=-1) if rest.shape[-1] else head


@dataclass(frozen=True)
class Sight:
    """What a block is told about the positions that it is called on.

    Attributes:
        rotary: Tables of the positions.
        mask: True where a position of the call (row) sees a key; ``None``: they see all keys.
        at: The positions on the canvas, where keys and values of others are kept.
        keys: Positions of the canvas, from 0 on, whose keys are looked at.
    """

    rotary: Rotary
    mask: Bool[Tensor, "length keys"] | None
    at: slice
    keys: int

    def to(self, device: torch.device | str) -> "Sight":
        """Return it for blocks that are on another device, as whoever places blocks asks."""
        mask = None if self.mask is None else self.mask.to(device)
        return replace(self, rotary=self.rotary.to(device), mask=mask)

    @classmethod
    def of(
        cls,
        config: BackboneConfig,
        length: int,
        device: torch.device | str,
        *,
        start: int = 0,
        keys: int | None = None,
    ) -> "Sight":
        """Look from ``length`` positions, from ``start`` on, at ``keys`` positions from 0 on.

        Args:
            config: Of the model.
            length: Positions of the call.
            device: Where to make the tables.
            start: The first of them.
            keys: Up to the last position of the call if not given.
        """
        stop = start + length
        keys = stop if keys is None else keys
        positions = torch.arange(start, stop, device=device)
        mask = None
        if config.attention_block and keys > config.attention_block:
            mask = _block_causal(positions, torch.arange(keys, device=device), config)
        return cls(Rotary.of(config, positions), mask, slice(start, stop), keys)

    @classmethod
    def teacher(cls, config: BackboneConfig, length: int, device: torch.device | str) -> "Sight":
        """Look from a masked copy of a text and, behind it, the text itself.

        A block-causal model denoises one block behind finished ones. So a masked position sees its
        own block as it is masked, and the blocks before it as they really are; a position of the
        text sees what it would see alone. One pass gives every block what it sees when its turn
        has come.

        Reference: Arriola et al., "Block Diffusion", arXiv:2503.09573, section 3.
        """
        positions = torch.arange(length, device=device)
        block = positions // (config.attention_block or length)
        own, before = block[:, None] == block, block[:, None] > block
        nothing = torch.zeros_like(own)
        mask = torch.cat(
            (torch.cat((own, before), dim=1), torch.cat((nothing, own | before), dim=1))
        )
        rotary = Rotary.of(config, positions.repeat(2))
        return cls(rotary, mask, slice(0, 2 * length), 2 * length)


def _block_causal(
    queries: Int[Tensor, " length"], keys: Int[Tensor, " keys"], config: BackboneConfig
) -> Bool[Tensor, "length keys"] | None:
    block = config.attention_block or 1
    mask = keys // block <= (queries // block)[:, None]
    return None if bool(mask.all()) else mask
