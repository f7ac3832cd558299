"""How the logits of a step are had: anew, with keys and values kept, with guidance.

Each of these fits the sampler's `Denoiser`, and counts what it costs: calls of the model, and
positions that went through its blocks.
"""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from quant_dllm.errors import RequestError
from quant_dllm.models.backbone import Backbone
from quant_dllm.models.cache import KeyValues
from quant_dllm.models.model import DiffusionLM
from quant_dllm.models.sampling import Sampling
from quant_dllm.models.sight import Sight

Logits = Float[Tensor, "batch some vocab"]


@runtime_checkable
class Counting(Protocol):
    """A denoiser that counts."""

    @property
    def calls(self) -> int:
        """Count calls of the model."""
        ...

    @property
    def positions(self) -> int:
        """Count positions that went through its blocks, over all calls."""
        ...

    def predict(self, input_ids: Tensor, positions: slice) -> Tensor:
        """Score the tokens of some positions: logits [batch, some, vocab]."""
        ...


class Anew:
    """Compute everything that the positions see, at every step."""

    def __init__(self, model: DiffusionLM):
        self.model = model
        self.calls = self.positions = 0

    def predict(self, input_ids: Int[Tensor, "batch length"], positions: slice) -> Logits:
        """Score the tokens of some positions; later blocks of attention are left out."""
        block = self.model.source.config.attention_block
        stop = -(-positions.stop // block) * block if block else input_ids.shape[1]
        seen = input_ids[:, :stop]
        self.calls += 1
        self.positions += seen.shape[1]
        return self.model.predict(seen, positions)


class _Kept:
    """What both caches share: a run of positions, behind or among those that are kept."""

    def __init__(self, model: DiffusionLM, canvas: int):
        assert isinstance(model.backbone, Backbone), "build_denoiser said so"
        self.model, self.backbone = model, model.backbone
        self.kept = [KeyValues(canvas) for _ in self.backbone.blocks]
        self.calls = self.positions = 0

    def rows(self, positions: slice) -> Int[Tensor, " some"]:
        """Return the rows in which positions are predicted."""
        return self.model.family.row(torch.arange(positions.start, positions.stop))

    def run(self, input_ids: Tensor, at: slice, keys: int) -> Float[Tensor, "batch some width"]:
        """Run the blocks on positions ``at``, which see the keys of positions 0 … keys − 1."""
        length = at.stop - at.start
        sight = Sight.of(self.backbone.config, length, input_ids.device, start=at.start, keys=keys)
        self.calls += 1
        self.positions += length
        return self.backbone.hidden(input_ids[:, at], sight, self.kept)


class FinishedBlocks(_Kept):
    """Keep what finished blocks of block-causal attention gave: exact, for nothing changes it.

    The first call in a block computes the block before it once more, with its last tokens written.
    """

    def __init__(self, model: DiffusionLM, canvas: int):
        super().__init__(model, canvas)
        self.finished = 0  # positions whose keys and values will not change
        self.last: Tensor | None = None  # hidden state of the last of them

    def predict(self, input_ids: Int[Tensor, "batch length"], positions: slice) -> Logits:
        """Score the tokens of some positions; all before their block of attention is finished."""
        block = self.backbone.config.attention_block
        assert block, "build_denoiser said so"
        begin, before = self.finished, positions.start // block * block
        stop = -(-positions.stop // block) * block
        x = self.run(input_ids, slice(begin, stop), stop)
        if before > begin:
            self.finished, self.last = before, x[:, before - begin - 1, None]
        first = begin - 1 if self.last is not None and before == begin else begin
        x = torch.cat((self.last, x), dim=1) if first < begin and self.last is not None else x
        rows = self.rows(positions) - first
        return self.backbone.project(x[:, rows])


class OuterPositions(_Kept):
    """Keep what positions outside the active block gave at the block's first step: approximate.

    Under full attention they would change with every token that is written; here they do so once a
    block.

    Args:
        behind: Whether positions behind the block are kept too ("dual"), or computed ("prefix").

    Reference: Wu et al., "Fast-dLLM", arXiv:2505.22618, section 3.2.
    """

    def __init__(self, model: DiffusionLM, canvas: int, behind: bool):
        super().__init__(model, canvas)
        self.behind = behind
        self.active: slice | None = None

    def predict(self, input_ids: Int[Tensor, "batch length"], positions: slice) -> Logits:
        """Score the tokens of some positions."""
        length = input_ids.shape[1]
        rows = self.rows(positions)
        at = slice(0, length)
        if positions == self.active:  # a shifted family needs the row in front of the block too
            at = slice(int(rows[0]), positions.stop if self.behind else length)
        self.active = positions
        return self.backbone.project(self.run(input_ids, at, length)[:, rows - at.start])


class Guided:
    """Classifier-free guidance: move the logits by what the prompt changes in them.

    Args:
        seeing, blind: Denoisers of the same model, each with what it keeps of its own canvas.
        prompt: Tokens of the prompt, which is masked for ``blind``.
        weight: w ≥ 0, of blind + (w + 1) (seeing − blind).
        mask_token_id: The mask token.

    Reference: Nie et al., "Large Language Diffusion Models", arXiv:2502.09992, appendix A.4.
    """

    def __init__(
        self, seeing: Counting, blind: Counting, prompt: int, weight: float, mask_token_id: int
    ):
        self.seeing, self.blind = seeing, blind
        self.prompt, self.weight, self.mask_token_id = prompt, weight, mask_token_id

    @property
    def calls(self) -> int:
        """Count the calls of both."""
        return self.seeing.calls + self.blind.calls

    @property
    def positions(self) -> int:
        """Count the positions of both."""
        return self.seeing.positions + self.blind.positions

    def predict(self, input_ids: Int[Tensor, "batch length"], positions: slice) -> Logits:
        """Score the tokens of some positions, twice."""
        hidden = input_ids.clone()
        hidden[:, : self.prompt] = self.mask_token_id
        blind = self.blind.predict(hidden, positions)
        return blind + (self.weight + 1) * (self.seeing.predict(input_ids, positions) - blind)


def build_denoiser(model: DiffusionLM, sampling: Sampling, prompt: int, canvas: int) -> Counting:
    """Make what the settings ask for.

    Args:
        model: The model.
        sampling: Settings.
        prompt: Tokens of the prompt.
        canvas: Tokens of the whole canvas.

    Raises:
        RequestError: A cache that the model's attention does not allow.
    """
    block_causal = bool(model.source.config.attention_block)
    wanted = {"exact": block_causal, "prefix": not block_causal, "dual": not block_causal}
    possible = isinstance(model.backbone, Backbone) and wanted.get(sampling.cache, True)
    if sampling.cache != "none" and not possible:
        kind = "block-causal" if block_causal else "full"
        fit = "none" if not isinstance(model.backbone, Backbone) else (
            "none or exact" if block_causal else "none, prefix or dual"
        )  # fmt: skip
        raise RequestError(
            f"Cache {sampling.cache!r} does not fit {model.source.name}, a {model.family.name} "
            f"model with {kind} attention. Choose {fit}."
        )

    def make() -> Counting:
        if sampling.cache == "exact":
            return FinishedBlocks(model, canvas)
        if sampling.cache in ("prefix", "dual"):
            return OuterPositions(model, canvas, behind=sampling.cache == "dual")
        return Anew(model)

    if not sampling.guidance:
        return make()
    return Guided(make(), make(), prompt, sampling.guidance, model.mask_token_id)
