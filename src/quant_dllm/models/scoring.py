"""How the likelihood of an answer is estimated: numbers and names only, for families to hold."""

from dataclasses import dataclass, field

from quant_dllm.errors import RequestError, UnknownNameError

HIDING = ("count", "rate")


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """The Monte-Carlo estimate that a family's authors publish their scores by.

    Attributes:
        hiding: ``"count"``: each draw hides a number of the answer's l tokens, spread evenly over
            1 … l within a stratum (LLaDA). ``"rate"``: each token is hidden with a probability that
            is spread evenly over 0 … 1 within a stratum (Dream); a draw may hide nothing.
        draws: Masks an answer.
        stratum: Draws that are spread evenly among each other.
        bos: Whether the beginning-of-text token stands in front of the prompt.
        eos: Whether the end-of-text token stands, visible, behind the answer.
        guidance: w of classifier-free guidance by lm-eval's task; 0 where a task is not named.

    References: Nie et al., "Large Language Diffusion Models", arXiv:2502.09992, appendix B.5; Ye et
    al., "Dream 7B", arXiv:2508.15487, and the evaluation code that comes with both.
    """

    hiding: str = "count"
    draws: int = 128
    stratum: int = 8
    bos: bool = False
    eos: bool = False
    guidance: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what means nothing."""
        if self.hiding not in HIDING:
            raise UnknownNameError("hiding", self.hiding, HIDING)
        if self.draws < 1 or self.draws % min(self.stratum, self.draws):
            raise RequestError(
                f"{self.draws} draws do not spread over strata of {self.stratum}; "
                f"1 or a multiple of {self.stratum} is wanted."
            )
