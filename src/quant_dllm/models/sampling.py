"""How text is drawn from a denoiser: numbers and names only, so that a family can hold its own."""

from dataclasses import dataclass
from math import inf

from quant_dllm.errors import RequestError, UnknownNameError

REMASKINGS = ("confidence", "entropy", "margin", "random")
CACHES = ("none", "exact", "prefix", "dual")


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Settings of the sampler.

    Attributes:
        block_length: Tokens of a block, which is finished before the next is begun; ``None``: the
            answer is one block.
        steps: Model calls that the answer is planned for; ``None``: one a token.
        temperature: 0 takes the likeliest token (dimensionless).
        top_p: Tokens are drawn from the likeliest ones that together have this probability.
        remasking: Which predictions are kept first: those of highest ``"confidence"`` (probability
            of the token), lowest ``"entropy"``, widest ``"margin"`` between the two likeliest
            tokens, or ``"random"`` ones.
        threshold: Beside the step's quota, keep every prediction of at least this probability.
        editing: Replace written tokens of the block by predictions of at least this probability.
        guidance: w of classifier-free guidance: logits are moved by w times the difference that
            the prompt makes; 0: none, and half the calls.
        cache: Which positions are computed anew at a step. ``"none"``: all that are seen.
            ``"exact"``: those behind finished blocks of attention; block-causal models only.
            ``"prefix"``: the block and what is behind it; ``"dual"``: the block alone. Both take
            the others' keys and values from the block's first step, which full attention would
            not: approximate.
    """

    block_length: int | None = None
    steps: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    remasking: str = "confidence"
    threshold: float | None = None
    editing: float | None = None
    guidance: float = 0.0
    cache: str = "none"

    def __post_init__(self) -> None:
        """Refuse what means nothing."""
        for name, known in (("remasking", REMASKINGS), ("cache", CACHES)):
            if getattr(self, name) not in known:
                raise UnknownNameError(name, getattr(self, name), known)
        for name in ("block_length", "steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise RequestError(f"{name} is {value}; 1 or more is wanted.")
        for name in ("temperature", "guidance"):
            if not 0 <= getattr(self, name) < inf:
                raise RequestError(f"{name} is {getattr(self, name):g}; 0 or more is wanted.")
        for name in ("top_p", "threshold", "editing"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise RequestError(f"{name} is {value}; a probability above 0 is wanted.")
