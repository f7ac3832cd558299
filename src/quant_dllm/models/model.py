"""A masked diffusion language model, at 16 bits or packed, as a module to call."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from quant_dllm.linear import QuantLinear
from quant_dllm.models.family import ModelFamily
from quant_dllm.models.mask_token import resolve_mask_token
from quant_dllm.models.network import Network
from quant_dllm.models.source import Source
from quant_dllm.packed import Packed
from quant_dllm.record import Bits


@dataclass(frozen=True)
class Output:
    """What a forward pass returns."""

    logits: Float[Tensor, "batch some vocab"]


class DiffusionLM(nn.Module):
    """A denoiser: a canvas of token ids in, logits for every position out.

    Attributes:
        source: Where it was loaded from.
        backbone: The network.
    """

    def __init__(self, source: Source, backbone: Network, mask_token_id: int | None = None):
        super().__init__()
        self.source = source
        self.backbone = backbone
        self._mask_token_id = mask_token_id
        self._bits: Bits | None = None

    @property
    def family(self) -> ModelFamily:
        """Say what kind of model it is."""
        return self.source.family

    @property
    def device(self) -> torch.device:
        """Say where it is."""
        return next(self.parameters()).device

    @cached_property
    def tokenizer(self) -> Any:
        """Load the tokenizer of the folder; ``None`` where there is none."""
        return load_tokenizer(self.source)

    @cached_property
    def end_token_ids(self) -> frozenset[int]:
        """Say behind which tokens an answer ends: end of text, end of turn."""
        tokenizer, known = self.tokenizer, self.tokenizer.get_vocab() if self.tokenizer else {}
        ends = {known[token] for token in self.family.end_tokens if token in known}
        if tokenizer is not None and tokenizer.eos_token_id is not None:
            ends.add(tokenizer.eos_token_id)
        return frozenset(ends)

    @property
    def mask_token_id(self) -> int:
        """Resolve the mask token when it is first asked for, see `resolve_mask_token`."""
        if self._mask_token_id is None:
            self._mask_token_id = resolve_mask_token(self.source, None, self.tokenizer)
        return self._mask_token_id

    def forward(self, input_ids: Int[Tensor, "batch length"]) -> Output:
        """Score every token; the rows are upstream's: a shifted family reads them one earlier."""
        return Output(self.backbone(input_ids))

    def predict(
        self, input_ids: Int[Tensor, "batch length"], positions: slice
    ) -> Float[Tensor, "batch some vocab"]:
        """Score the tokens of some positions themselves.

        The head of a large vocabulary costs as much as several blocks, and a sampler needs few
        rows of it.
        """
        rows = torch.arange(input_ids.shape[1])[positions]
        return self.backbone.project(self.backbone.hidden(input_ids)[:, self.family.row(rows)])

    def logits_at(
        self,
        input_ids: Int[Tensor, "batch length"],
        where: Bool[Tensor, "batch length"],
        text: Int[Tensor, "batch length"],
    ) -> Float[Tensor, "some vocab"]:
        """Score the tokens of the marked positions themselves, row after row.

        Args:
            input_ids: The canvas.
            where: The positions.
            text: What the canvas hides: a block-causal model is shown it in the blocks before
                each block, which are finished when that block's turn comes.
        """
        return self.backbone.project(self.states_at(input_ids, where, text))

    def states_at(
        self,
        input_ids: Int[Tensor, "batch length"],
        where: Bool[Tensor, "batch length"],
        text: Int[Tensor, "batch length"],
    ) -> Float[Tensor, "some width"]:
        """Return what the head makes `logits_at` of."""
        ids, sight = self.backbone.look(input_ids, text)
        return self.backbone.hidden(ids, sight)[self.source.rows(where)]

    def packed(self) -> list[QuantLinear]:
        """List the packed layers of the blocks; none in a 16-bit model."""
        blocks = self.backbone.blocks.modules()
        return [module for module in blocks if isinstance(module, QuantLinear)]

    def unpack(self) -> "DiffusionLM":
        """Put plain modules of the same weights in place of the packed ones; return the model.

        A kernel rounds the activations, so that what it computes is not only the quantizer's doing.
        """
        self._bits = self.bits()  # of what was rounded, which the plain modules do not tell
        plain = (m for m in self.modules() if not isinstance(m, Packed))
        dtype = next(p for m in plain for p in m.parameters(recurse=False)).dtype
        for name, module in list(self.named_modules()):
            if isinstance(module, Packed):
                self.set_submodule(name, module.unpacked(dtype))
        return self

    def bits(self) -> Bits:
        """Count bits a weight: codes, all that the blocks' layers store, and the weight files.

        A layer at 16 bits is its own code. The files have headers too, which a small model's bits
        show: 16.01 of tiny's. An unpacked model's are those that it had.
        """
        if self._bits is not None:
            return self._bits
        sizes, code, stored = [], [], []
        for layer in self.packed():
            weight = layer.weight  # one at a time: a kernel's layout is restored for it
            sizes.append(weight.out_features * weight.in_features)
            code.append(weight.code_bits)
            stored.append(weight.stored_bits)
        if not sizes:
            names = [f"{slot}.weight" for slot in self.source.layers]
            sizes = [self.backbone.get_parameter(name).numel() for name in names]
            code = stored = [8.0 * self.source.dtype(name).itemsize for name in names]
        file = 8 * self.source.folder.weight_bytes / self.source.parameters()
        return Bits.average(sizes, code, stored, file)


def load_tokenizer(source: Source) -> Any:
    """Load the tokenizer of a folder with transformers; ``None`` where the folder has none."""
    path = source.folder.path
    if (path / "tokenizer.json").is_file():
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast.from_pretrained(str(path))
    if (path / "vocab.json").is_file() and (path / "merges.txt").is_file():
        import transformers

        qwen: Any = getattr(transformers, "Qwen2TokenizerFast")  # noqa: B009  # Dream's, renamed
        return qwen.from_pretrained(str(path))
    if (path / "tokenizer.model").is_file():
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(str(path))
    return None
