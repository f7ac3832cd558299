"""Levers that were tried beside the ladder: what each changes of which recipe."""

from dataclasses import dataclass
from typing import Any

RUNG = "ladder-4-budget"
ALONE = "ablation-tuned-without-blocks"
ROTATED = ("gptq-2bit", "quant-dllm-2bit-release", "ladder-5-drift")
"""Recipes that are tried on a rotated model too."""


@dataclass(frozen=True)
class Trial:
    """A recipe with a few fields changed.

    Attributes:
        about: What is changed, for the table.
        settings: The fields, as `Recipe.override` takes them.
        of: The recipe that is changed.
    """

    about: str
    settings: dict[str, Any]
    of: str = RUNG


FINER = {"quantizer.drift": 1.0, "outside.bits": 4, "outside.finer": 0.05}
BEHIND = {"outside.behind": True, "outside.drift": 1.0}
TRIALS = {
    RUNG: Trial("nothing changed", {}),
    "prompt-0": Trial(
        "nothing of a calibration window always visible, in place of a quarter",
        {"calibration.prompt": 0.0},
    ),
    "prompt-0.5": Trial("half of it", {"calibration.prompt": 0.5}),
    "few-masked": Trial(
        "calibration crowds where few tokens are masked, t = ((i + 1)/n)²",
        {"calibration": "mcs-skewed", "calibration.power": 2.0},
    ),
    "many-masked": Trial(
        "calibration crowds where many are, t = √((i + 1)/n)",
        {"calibration": "mcs-skewed", "calibration.power": 0.5},
    ),
    "damping-0.003": Trial(
        "the Hessian's damping 0.003, in place of 0.01", {"calibration.damping": 0.003}
    ),
    "damping-0.03": Trial("0.03", {"calibration.damping": 0.03}),
    "lambda": Trial("Λ of weight 3 at two deviations", {"quantizer.emphasis": 3.0}),
    "drift": Trial(
        "rounded towards the full-precision model's output: now the next rung",
        {"quantizer.drift": 1.0},
    ),
    "drift-0.5": Trial("the same, half as strong", {"quantizer.drift": 0.5}),
    "drift-0.25": Trial("the same, a quarter as strong", {"quantizer.drift": 0.25}),
    "outside-4": Trial("embedding and head in four bits, in place of eight", {"outside.bits": 4}),
    "head-behind": Trial(
        "the drift, and the head rounded behind the blocks, towards full precision too",
        {"quantizer.drift": 1.0, **BEHIND},
    ),
    "finer": Trial(
        "the drift; embedding and head in four bits, of eight for the 5 % commonest tokens", FINER
    ),
    "finer-behind": Trial(
        "the same, and the head rounded behind the blocks", {**FINER, "outside.behind": True}
    ),
    "mask-behind": Trial(
        "the same, towards full precision too, eight bits for the mask and one token",
        {**FINER, **BEHIND, "outside.finer": 0.0005},
    ),
    ALONE: Trial("nothing changed", {}, ALONE),
    "rate-0.007": Trial(
        "tuned at the rate 0.007, in place of 0.0025", {"tuning.rate": 0.007}, ALONE
    ),
    "rate-0.00125": Trial("tuned at the rate 0.00125", {"tuning.rate": 0.00125}, ALONE),
    "steps-480": Trial("tuned for 480 steps, in place of 320", {"tuning.steps": 480}, ALONE),
    "blocks": Trial(
        "the scales of each block tuned by themselves before",
        {"block_tuning": "block-by-block"},
        ALONE,
    ),
    "blocks-steps-480": Trial(
        "the same, and tuned for 480 steps: now the default",
        {"block_tuning": "block-by-block", "tuning.steps": 480},
        ALONE,
    ),
    "steps-480-rate-0.00125": Trial(
        "tuned for 480 steps at the rate 0.00125",
        {"tuning.steps": 480, "tuning.rate": 0.00125},
        ALONE,
    ),
}
