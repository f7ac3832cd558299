"""What a run leaves for people: facts, in JSON and back."""

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class LayerRecord:
    """What happened to one linear layer.

    Attributes:
        name: Upstream's name.
        kind: How its weight is stored.
        shape: [out, in].
        code_bits, stored_bits: Bits a weight: codes alone, and all that is stored.
        orders: Bits of its blocks → how many blocks have them.
        error: ‖(W − Ŵ) X‖² / ‖W X‖² on the calibration inputs; ``None`` where none were gathered.
        tokens: Tokens that it was calibrated on.
        seconds: Time that rounding took, without gathering the inputs.
        layout: What a loader must know of the stored weight.
        chosen: Tokens that chose the expert, where they were so few that it was calibrated on all
            tokens instead; else ``None``.
        increase: KL to the 16-bit model, nats, that its rounding was expected to add when bits were
            allocated; ``None`` where no budget was spent over all layers.
    """

    name: str
    kind: str
    shape: list[int]
    code_bits: float
    stored_bits: float
    orders: dict[str, int]
    error: float | None
    tokens: int
    seconds: float
    layout: dict[str, Any]
    chosen: int | None = None
    increase: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON's types."""
        return asdict(self)

    def line(self) -> str:
        """Format for a log."""
        error = "-" if self.error is None else f"{self.error:.2e}"
        orders = ",".join(f"{order}:{blocks}" for order, blocks in sorted(self.orders.items()))
        return (
            f"layer={self.name} bits={self.code_bits:.2f} stored={self.stored_bits:.2f} "
            f"orders={orders or '-'} error={error} seconds={self.seconds:.1f}"
        )


@dataclass(frozen=True, kw_only=True)
class Bits:
    """Bits a weight, three ways.

    Attributes:
        code: Of the quantized layers, codes alone.
        stored: Of the quantized layers, with every scale, zero point and order.
        file: Of the weight files, over all weights of the model.
    """

    code: float
    stored: float
    file: float

    @classmethod
    def average(
        cls, sizes: list[int], code: list[float], stored: list[float], file: float
    ) -> "Bits":
        """Average the bits of layers over their weights, ``sizes`` of them."""

        def mean(bits: list[float]) -> float:
            return sum(n * b for n, b in zip(sizes, bits, strict=True)) / sum(sizes)

        return cls(code=mean(code), stored=mean(stored), file=file)


@dataclass(frozen=True, kw_only=True)
class TuningStep:
    """One update of the scales, as it is done.

    Attributes:
        done, steps: Updates so far, and in all.
        tokens: Tokens of one update.
        loss: KL to the 16-bit model on this update's windows, nats.
        curve: KL on the validation windows: before, and at every look so far.
        seconds_left: What is guessed of the rest.
    """

    done: int
    steps: int
    tokens: int
    loss: float
    curve: list[float]
    seconds_left: float


@dataclass(frozen=True, kw_only=True)
class TuningRecord:
    """How the scales were tuned.

    Attributes:
        curve: KL to the 16-bit model on the validation windows, nats: before, and at every look.
        every: Updates between two looks.
        text: Fingerprint of the windows that were learned from.
        seconds: Time that it took.
    """

    curve: list[float]
    every: int
    text: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What a quantization did: the content of ``quant_dllm.json``.

    Attributes:
        base_model: The model as it was asked for; its fingerprint hashes configuration and weights.
        calibration: Fingerprint, sequences and length of the token windows, before masking.
        seconds: Time of the whole run.
        peak_memory: Peak resident memory of the process, bytes; ``None`` where not known.
        peak_device_memory: The same of an accelerator.
        fingerprint: Of the packed tensors, see `checkpoint.fingerprint`; ``None`` in records that
            were written before there was one.
        block_tuning: Relative errors of each block's output, before and after each pass; none where
            blocks were not tuned.
        tuning: ``None`` where all scales were not tuned; errors of layers are before any tuning.
        outside: Embedding and head, where they are packed.
    """

    format_version: int
    recipe: dict[str, Any]
    seed: int
    base_model: str
    base_fingerprint: str
    family: str
    mask_token_id: int
    calibration: dict[str, Any] | None
    bits: Bits
    parameters: int
    seconds: float
    peak_memory: int | None
    peak_device_memory: int | None
    device: str
    versions: dict[str, str]
    fingerprint: str | None = None
    block_tuning: list[list[float]] = field(default_factory=list)
    tuning: TuningRecord | None = None
    layers: list[LayerRecord] = field(default_factory=list)
    outside: list[LayerRecord] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON's types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> "RunRecord":
        """Read what `to_dict` gave."""
        made: dict[str, Any] = {"bits": Bits(**raw["bits"])}
        made["tuning"] = raw.get("tuning") and TuningRecord(**raw["tuning"])
        for part in ("layers", "outside"):
            made[part] = [LayerRecord(**layer) for layer in raw.get(part, ())]
        return cls(**raw | made)


BASE = "16-bit"
"""What the model itself is called among the recipes that quantize it."""


@dataclass(frozen=True, kw_only=True)
class ComparisonRecord:
    """One recipe with one seed, measured beside others: a line of ``records.jsonl``.

    Attributes:
        identity: Hash of everything that went in.
        model: The 16-bit model.
        recipe: Name and every field; the name alone for the 16-bit model.
        seed: Of the calibration.
        evaluation: What `evaluate` gave.
        layer_errors: ‖(W − Ŵ) X‖² / ‖W X‖² of each layer on held-out masked inputs; none where the
            method scales inputs, for what is stored is then not W rounded.
        bytes_on_disk: Of the whole folder.
        seconds: Time to quantize; ``None`` for the 16-bit model, as the next.
        peak_memory: Peak resident memory while quantizing, bytes.
        machine: What it ran on.
    """

    identity: str
    model: str
    recipe: dict[str, Any]
    seed: int
    evaluation: dict[str, Any]
    layer_errors: dict[str, float]
    bytes_on_disk: int
    seconds: float | None
    peak_memory: int | None
    machine: str

    @property
    def name(self) -> str:
        """Name the recipe."""
        return self.recipe["name"]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON's types."""
        return {"what": "comparison"} | asdict(self)

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> "ComparisonRecord":
        """Read what `to_dict` gave."""
        return cls(**{key: value for key, value in raw.items() if key != "what"})
