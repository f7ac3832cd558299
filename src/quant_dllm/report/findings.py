"""All that a report shows, as facts: what was done, and what was measured afterwards."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from quant_dllm.record import ComparisonRecord, RunRecord

FILE = "report.json"
"""Where measurements lie beside the weights, so that a page can be drawn again without them."""


@dataclass(frozen=True, kw_only=True)
class Written:
    """One text that a model wrote, as it came about.

    Attributes:
        name: Which model wrote it.
        length: Tokens of the answer.
        steps: Calls of the sampler.
        seconds: Time that it took.
        events: Step, position, text and confidence of each token that was written, in order.
    """

    name: str
    length: int
    steps: int
    seconds: float
    events: list[tuple[int, int, str, float]]

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> "Written":
        """Read what `Measured.to_dict` gave."""
        events = [(int(a), int(b), str(c), float(d)) for a, b, c, d in raw["events"]]
        return cls(**{**raw, "events": events})

    def last(self) -> list[tuple[str, float]]:
        """Return the finished text, token by token, with confidences."""
        found = {position: (piece, sure) for _, position, piece, sure in self.events}
        return [found[position] for position in sorted(found)]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One prompt, and what each model made of it."""

    prompt: str
    answers: list[Written]

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> "Sample":
        """Read what `Measured.to_dict` gave."""
        return cls(prompt=raw["prompt"], answers=[Written.from_dict(a) for a in raw["answers"]])


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What was measured after a run.

    Attributes:
        base: The 16-bit model that it was compared with.
        evaluation: What `evaluate` gave, in JSON's types.
        samples: Texts of both models.
        settings: How the texts were drawn.
    """

    base: str
    evaluation: dict[str, Any]
    samples: list[Sample] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON's types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> "Measured":
        """Read what `to_dict` gave."""
        samples = [Sample.from_dict(sample) for sample in raw["samples"]]
        return cls(**{**raw, "samples": samples})


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Everything about one checkpoint.

    Attributes:
        name: Of the folder.
        record: What the run wrote.
        bits: Bits of each block of channels, by layer; none where the layer has no blocks.
        file_bytes: What the weight files hold: codes, scales, packed embedding and head, and what
            was not quantized.
        base_bytes: Weights of the 16-bit model.
        measured: What was measured afterwards.
        compared: Runs of other recipes on the same model.
    """

    name: str
    record: RunRecord
    bits: Mapping[str, Sequence[int]]
    file_bytes: Mapping[str, float]
    base_bytes: int
    measured: Measured | None = None
    compared: Sequence[ComparisonRecord] = ()
