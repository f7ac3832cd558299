import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

from quant_dllm.errors import RecipeError, UnknownNameError
from quant_dllm.recipe import PARTS, QUANTIZERS, Recipe

PRESETS = sorted(
    f.name.removesuffix(".yaml")
    for f in files("quant_dllm.recipes").iterdir()
    if f.name.endswith(".yaml")
)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_builds(preset):
    recipe = Recipe.load(preset)
    calibration, precision, quantizer = recipe.build()
    assert recipe.about
    assert calibration.sequences and precision.bits and quantizer.needs is not None


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("quantizer", ["rtn", "hqq", "awq", "gptq", "gptaq", "slim-llm"])
def test_a_baseline_of_evenly_spaced_levels_comes_with_two_three_and_four_bits(quantizer, bits):
    recipe = Recipe.load(f"{quantizer}-{bits}bit")
    assert recipe.quantizer.name == quantizer
    assert (
        recipe.to_dict()["precision"] | {"bits": bits, "block_size": 128}
        == (recipe.to_dict()["precision"])
    )


def test_every_registered_quantizer_has_a_preset_and_a_row_in_the_docs():
    by_quantizer = {Recipe.load(preset).quantizer.name: preset for preset in PRESETS}
    assert by_quantizer.keys() == QUANTIZERS.targets.keys()
    page = (Path(__file__).parents[2] / "docs" / "methods.md").read_text()
    named = {name for name in PRESETS if f"`{name}`" in page}
    assert {Recipe.load(name).quantizer.name for name in named} == QUANTIZERS.targets.keys()


@pytest.mark.parametrize("part", PARTS)
def test_every_registered_name_resolves(part):
    for name in PARTS[part].targets:
        assert callable(PARTS[part].get(name))


def test_the_release_recipe_is_the_column_of_method_md():
    recipe = Recipe.load("quant-dllm-2bit-release").to_dict()
    assert recipe["calibration"] | {"timesteps": None, "sequences": 128, "length": 4096,
        "prompt": 0.25, "order": "outputs-first"} == recipe["calibration"]  # fmt: skip
    wanted = {"saliency": "factor", "sigmas": 2.0, "emphasis": 3.0, "scope": "block",
              "fitting": "joint", "rounds": 15, "feedback": "diagonal"}  # fmt: skip
    assert recipe["quantizer"] | wanted == recipe["quantizer"]
    assert recipe["precision"]["ratio"] == 0.05


def test_the_paper_recipe_is_the_column_of_method_md():
    recipe = Recipe.load("quant-dllm-2bit-paper").to_dict()
    wanted = {"saliency": "inverse", "sigmas": 3.0, "scope": "matrix", "fitting": "greedy"}
    assert recipe["quantizer"] | wanted == recipe["quantizer"]
    assert recipe["quantizer"]["tolerance"] > 0  # until convergence
    assert recipe["calibration"]["timesteps"] is not None


def test_overrides_change_one_field_or_one_part():
    recipe = Recipe.load("ladder-1-rounding").override(
        {"precision.ratio": 0.1, "quantizer.search": True, "quantizer": "gptq"}
    )
    built = recipe.to_dict()
    assert built["precision"]["ratio"] == 0.1
    assert built["quantizer"] == {"name": "gptq", "search": True, "static_groups": False}


def test_a_yaml_file_is_a_recipe(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("quantizer: {name: rtn, search: false}\nprecision: {name: uniform, bits: 3}\n")
    recipe = Recipe.load(path)
    assert recipe.name == "mine"
    assert recipe.to_dict()["precision"]["bits"] == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quantiser.rounds": 3}, "Did you mean 'quantizer'"),
        ({"quantizer.round": 3}, "Did you mean 'rounds'"),
        ({"quantizer": "gtpq"}, "Did you mean 'gptq'"),
        ({"quantizer.rounds": "many"}, "quantizer.rounds is 'many'"),
        ({"quantizer.feedback": "in-swep"}, "quantizer.feedback is 'in-swep'"),
        ({"precision.bits": 2.5}, "precision.bits is 2.5"),
        ({"quantizer.drift": False}, "quantizer.drift is False, as YAML reads yes and no"),
        ({"quantizer": 3}, "Unknown recipe path 'quantizer'"),
    ],
)
def test_what_a_recipe_does_not_have_is_met_with_what_it_has(settings, message):
    with pytest.raises(RecipeError, match=message):
        Recipe.load("ladder-1-rounding").override(settings).build()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("quantizer: daq", "{name: …} is wanted"),
        ("quantizer: {name: daq", "is not YAML"),
        ("[1, 2]", "are wanted"),
        ("qantizer: {name: daq}", "Did you mean 'quantizer'"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(text, message):
    with pytest.raises(RecipeError, match=message):
        Recipe.parse(text, "mine")


def test_an_unknown_preset_is_met_with_the_nearest():
    with pytest.raises(UnknownNameError, match="Did you mean 'gptq-2bit'"):
        Recipe.load("gptq-2bits")


def test_the_light_parts_load_no_torch():
    for module in ("quant_dllm", "quant_dllm.recipe", "quant_dllm.cli.main"):
        code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code]).returncode == 0, module


def test_methods_load_no_model_library():
    code = (
        "import sys, quant_dllm.quantizers.daq, quant_dllm.calibration.mcs;"
        "sys.exit('transformers' in sys.modules or 'safetensors' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
