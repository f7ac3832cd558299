"""A method: what the layer sees, how many bits a block gets, how it is rounded, how it is tuned.

A recipe names one answer to each question and the fields that differ from that answer's defaults.
Presets are the YAML files of ``recipes/``; an ablation or a baseline is another file, not other
code.
"""

from dataclasses import dataclass, field, fields, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args, get_type_hints

from quant_dllm.errors import RecipeError, UnknownNameError, hint
from quant_dllm.registry import Registry

CALIBRATIONS = Registry(
    "calibration",
    {
        "mcs": "quant_dllm.calibration.mcs:MaskedCalibrationSimulation",
        "trajectory": "quant_dllm.calibration.trajectory:DenoisingTrajectory",
        "visible": "quant_dllm.calibration.visible:Visible",
    },
)
PRECISIONS = Registry(
    "precision policy",
    {
        "abmp": "quant_dllm.precision.abmp:AdaptiveBlockwiseMixedPrecision",
        "sensitivity": "quant_dllm.precision.sensitivity:SensitivityBasedBitAllocation",
        "slim": "quant_dllm.precision.slim:SalienceDeterminedBitAllocation",
        "uniform": "quant_dllm.precision.uniform:Uniform",
    },
)
QUANTIZERS = Registry(
    "quantizer",
    {
        "arb-llm": "quant_dllm.quantizers.arb_llm:ARBLLM",
        "awq": "quant_dllm.quantizers.awq:AWQ",
        "billm": "quant_dllm.quantizers.billm:BiLLM",
        "daq": "quant_dllm.quantizers.daq:DataAwareAnyOrderQuantizer",
        "gptaq": "quant_dllm.quantizers.gptaq:GPTAQ",
        "gptq": "quant_dllm.quantizers.gptq:GPTQ",
        "hqq": "quant_dllm.quantizers.hqq:HalfQuadraticQuantizer",
        "rtn": "quant_dllm.quantizers.rtn:RTN",
        "slim-llm": "quant_dllm.quantizers.slim_llm:SliMLLM",
    },
)
BLOCK_TUNINGS = Registry(
    "block tuning",
    {
        "block-by-block": "quant_dllm.tuning.block_by_block:BlockByBlock",
        "none": "quant_dllm.tuning.none:NoTuning",
    },
)
TUNINGS = Registry(
    "tuning",
    {
        "end-to-end": "quant_dllm.tuning.end_to_end:EndToEnd",
        "none": "quant_dllm.tuning.none:NoTuning",
    },
)
OUTSIDE = Registry(
    "form of embedding and head",
    {
        "grouped": "quant_dllm.quantizers.outside:Grouped",
        "unchanged": "quant_dllm.quantizers.outside:Unchanged",
    },
)
METHOD = ("calibration", "precision", "quantizer")
PARTS = {
    "calibration": CALIBRATIONS,
    "precision": PRECISIONS,
    "quantizer": QUANTIZERS,
    "block_tuning": BLOCK_TUNINGS,
    "tuning": TUNINGS,
    "outside": OUTSIDE,
}
DEFAULT = "quant-dllm-2bit"


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One part of a recipe: a registered name and the fields that differ from its defaults."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)

    def build(self, part: str) -> Any:
        """Import and construct what the name stands for.

        Raises:
            UnknownNameError: No such name.
            RecipeError: A field that it does not have, or a value that the field cannot take.
        """
        made = PARTS[part].get(self.name)
        known = {f.name: f for f in fields(made)}
        for key in self.options:
            if key not in known:
                raise RecipeError(
                    f"Unknown key {part}.{key}.{hint(key, known)} "
                    f"{self.name} has: {', '.join(known)}."
                )
        types = get_type_hints(made)
        options = {
            key: _checked(f"{part}.{key}", types[key], value) for key, value in self.options.items()
        }
        return made(**options)

    def full(self, part: str) -> dict[str, Any]:
        """List every field with its value."""
        built = self.build(part)
        return {"name": self.name} | {f.name: getattr(built, f.name) for f in fields(built)}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A complete quantization method.

    Attributes:
        name: What it is called in tables.
        about: One line on where it comes from.
        block_tuning, tuning: How the scales of each block are tuned, and then those of all.
        outside: What becomes of the embedding and the head.
    """

    name: str
    about: str = ""
    calibration: Choice = Choice(name="mcs")
    precision: Choice = Choice(name="abmp")
    quantizer: Choice = Choice(name="daq")
    block_tuning: Choice = Choice(name="none")
    tuning: Choice = Choice(name="none")
    outside: Choice = Choice(name="unchanged")

    @classmethod
    def load(cls, source: "str | Path | Recipe") -> "Recipe":
        """Find a preset by name, or read a YAML file.

        Raises:
            UnknownNameError: Neither a preset nor a file.
            RecipeError: A file that is no recipe.
        """
        if isinstance(source, Recipe):
            return source
        presets = {f.name.removesuffix(".yaml"): f for f in files("quant_dllm.recipes").iterdir()
                   if f.name.endswith(".yaml")}  # fmt: skip
        if str(source) in presets:
            return cls.parse(presets[str(source)].read_text(), str(source))
        path = Path(source)
        if path.suffix in (".yaml", ".yml") and path.is_file():
            return cls.parse(path.read_text(), path.stem)
        raise UnknownNameError("recipe", str(source), presets)

    @classmethod
    def parse(cls, text: str, name: str) -> "Recipe":
        """Read YAML: ``about`` and the parts, each ``{name: …, field: value, …}``.

        Or ``about``, ``base`` (another recipe) and ``set`` (what to change in it, by path).
        """
        import yaml

        try:
            raw = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise RecipeError(
                f"Recipe {name} is not YAML: {' '.join(str(error).split())}"
            ) from None
        if not isinstance(raw, dict):
            raise RecipeError(f"Recipe {name} is {raw!r}; {', '.join(PARTS)} are wanted.")
        known = ("about", "base", "set") if "base" in raw else ("about", *PARTS)
        for key in raw:
            if key not in known:
                raise RecipeError(
                    f"Unknown key {key} in recipe {name}.{hint(key, known)} "
                    f"It may have: {', '.join(known)}."
                )
        if "base" in raw:
            changed = cls.load(raw["base"]).override(raw.get("set") or {})
            return replace(changed, name=name, about=raw.get("about", ""))
        choices = {}
        for part in PARTS.keys() & raw.keys():
            value = raw[part]
            if not isinstance(value, dict) or not isinstance(value.get("name"), str):
                raise RecipeError(f"{part} of recipe {name} is {value!r}; {{name: …}} is wanted.")
            options = {key: item for key, item in value.items() if key != "name"}
            choices[part] = Choice(name=value["name"], options=options)
        return cls(name=name, about=raw.get("about", ""), **choices)

    def override(self, settings: dict[str, Any]) -> "Recipe":
        """Change fields by path: ``{"quantizer.rounds": 20, "quantizer": "gptq"}``.

        Naming a part by itself replaces it, with its defaults, before any field is changed.
        """
        recipe = self
        for path, value in sorted(settings.items(), key=lambda item: "." in item[0]):
            part, _, key = path.partition(".")
            if part not in PARTS or (key == "" and not isinstance(value, str)):
                raise RecipeError(
                    f"Unknown recipe path {path!r}.{hint(part, PARTS)} A path is a part "
                    f"({', '.join(PARTS)}), a dot and a field, as in quantizer.rounds=20."
                )
            choice: Choice = getattr(recipe, part)
            if key in ("", "name"):
                choice = Choice(name=value)
            else:
                choice = replace(choice, options=choice.options | {key: value})
            recipe = replace(recipe, **{part: choice})
        return recipe

    def build(self) -> tuple[Any, Any, Any]:
        """Construct calibration, precision policy and quantizer."""
        return tuple(getattr(self, part).build(part) for part in METHOD)  # type: ignore[return-value]

    def to_dict(self) -> dict[str, Any]:
        """List every field of every part with its value, in JSON's types."""
        parts = {part: getattr(self, part).full(part) for part in PARTS}
        return {"name": self.name, "about": self.about} | parts


def _checked(path: str, wanted: Any, value: Any) -> Any:
    """Return ``value`` as the type that a field wants."""
    from pydantic import TypeAdapter, ValidationError

    if isinstance(value, bool) and bool not in (wanted, *get_args(wanted)):
        raise RecipeError(
            f"{path} is {value!r}, as YAML reads yes and no; give a number or a name."
        )
    try:
        return TypeAdapter(wanted).validate_python(value)
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise RecipeError(f"{path} is {value!r}: {reason[0].lower()}{reason[1:]}.") from None
