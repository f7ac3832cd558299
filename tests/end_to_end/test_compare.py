"""Recipes side by side: one text, one set of masks, runs reused by what went into them."""

import json

import pytest
import torch

from quant_dllm.cli.main import main
from quant_dllm.evaluation.compare import Comparison, read_records
from quant_dllm.evaluation.identity import hash_code, identify
from quant_dllm.evaluation.remembering import Remembering
from quant_dllm.models.load import load
from quant_dllm.pipeline.quantize import quantize
from quant_dllm.recipe import Choice, Recipe
from quant_dllm.record import BASE
from quant_dllm.report.pareto import lower_edge
from quant_dllm.report.table import COLUMNS, Spread, markdown, rows

WORDS = ["--sequences", "4", "--length", "32", "--draws", "2", "--seeds", "2"]


@pytest.fixture(scope="module")
def recipes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipes")
    text = (
        "calibration: {name: mcs, sequences: 6, length: 32}\n"
        "precision: {name: uniform, block_size: 16}\n"
    )
    for name, quantizer in (("a", "gptq"), ("b", "rtn")):
        (folder / f"{name}.yaml").write_text(text + f"quantizer: {{name: {quantizer}}}\n")
    return [word for name in "ab" for word in ("-r", str(folder / f"{name}.yaml"))]


@pytest.fixture(scope="module")
def compared(small_model, recipes, tmp_path_factory):
    out = tmp_path_factory.mktemp("compared")
    assert main(["compare", str(small_model), *recipes, *WORDS, "-o", str(out)]) == 0
    return out


def test_it_leaves_records_a_table_and_a_picture(compared):
    records = list(read_records(compared / "records.jsonl").values())
    assert [(r.name, r.seed) for r in records] == [
        (BASE, 0), ("a", 0), ("a", 1), ("b", 0), ("b", 1)
    ]  # fmt: skip
    assert len({r.evaluation["text"] for r in records}) == 1  # one text for all
    assert all(len(r.layer_errors) == 14 for r in records[1:])
    assert records[0].evaluation["kl"] is None
    assert (compared / "pareto.png").read_bytes().startswith(b"\x89PNG")
    assert (compared / "table.md").read_text().count("\n") == 5


def test_rtn_looks_at_no_data_and_gptq_does(compared):
    found = {
        (r.name, r.seed): r.evaluation["kl"]
        for r in read_records(compared / "records.jsonl").values()
    }
    assert found["b", 0] == found["b", 1]
    assert found["a", 0] != found["a", 1]


def test_runs_that_are_there_are_not_made_again(
    compared, small_model, recipes, monkeypatch, capsys
):
    monkeypatch.setattr("quant_dllm.evaluation.compare.quantize", None)  # may not be called
    before = (compared / "records.jsonl").read_text()
    words = ["compare", str(small_model), *recipes, *WORDS, "-o", str(compared), "--json"]
    assert main(words) == 0
    assert (compared / "records.jsonl").read_text() == before
    found = json.loads(capsys.readouterr().out)
    assert len(found["runs"]) == 5


def test_another_ingredient_is_another_run():
    assert identify(a=1, b=[2]) == identify(b=[2], a=1) != identify(a=1, b=[3])
    assert len(hash_code()) == 16


def test_a_line_that_was_cut_is_passed_over(compared, tmp_path):
    text = (compared / "records.jsonl").read_text()
    (tmp_path / "cut.jsonl").write_text(text[:-40])
    assert len(read_records(tmp_path / "cut.jsonl")) == 4


def test_rows_gather_seeds(compared):
    table = rows(read_records(compared / "records.jsonl").values())
    assert [row.name for row in table] == [BASE, "a", "b"]
    values = [run.evaluation["kl"] for run in table[1].runs]
    assert table[1].kl.mean == pytest.approx(sum(values) / 2)
    assert all(len(row.cells()) == len(table[0].cells()) for row in table)


def test_spread_is_mean_and_deviation():
    assert Spread.of([1.0, 3.0]).text(2) == "2.00 ± 1.41"
    assert Spread.of([1.0]).text(2) == "1.00"


def test_the_lower_edge_keeps_what_nothing_beats():
    points = [(2.0, 0.5), (2.1, 0.6), (2.2, 0.3), (3.0, 0.3), (4.0, 0.1)]
    assert lower_edge(points) == [(2.0, 0.5), (2.2, 0.3), (4.0, 0.1)]


def test_markdown_is_a_table():
    assert markdown(("a", "b"), [("x", "1")]) == "| a | b |\n| --- | --: |\n| x | 1 |\n"


def test_no_layer_error_is_told_of_a_method_that_scales_inputs(small_model):
    """What is stored is then W S rounded: W − Ŵ would tell of the scale, not of rounding."""
    recipe = Recipe.load("awq-2bit").override(
        {"calibration.sequences": 2, "calibration.length": 16, "precision.block_size": 16}
    )
    comparison = Comparison(
        model=str(small_model), recipes=[recipe], seeds=[0], sequences=2, length=16, draws=1
    )
    record = list(comparison.run({}))[-1]
    assert record.layer_errors == {}
    assert dict(zip(COLUMNS, rows([record])[0].cells(), strict=True))["layer error"] == "–"


def test_a_recipe_may_be_a_value(small_model):
    recipe = Recipe(
        name="mine",
        calibration=Choice(name="visible", options={"sequences": 2, "length": 16}),
        precision=Choice(name="uniform", options={"block_size": 16}),
        quantizer=Choice(name="rtn"),
    )
    comparison = Comparison(
        model=str(small_model), recipes=[recipe], seeds=[0], sequences=2, length=16, draws=1
    )
    assert [record.name for record in comparison.run({})] == [BASE, "mine"]


def test_a_remembered_model_says_the_same_again_without_running(small_model):
    model = load(small_model)
    remembering = Remembering(model)
    ids = torch.arange(24).view(2, 12)
    where = torch.zeros_like(ids, dtype=torch.bool)
    where[:, 3::2] = True
    canvas = torch.where(where, model.mask_token_id, ids)
    first = remembering.logits_at(canvas, where, ids)
    assert torch.equal(first, model.logits_at(canvas, where, ids))
    model.backbone.hidden = None  # whoever runs it now fails
    assert torch.equal(remembering.logits_at(canvas.clone(), where, ids), first)
    with pytest.raises(TypeError):
        remembering.logits_at(canvas, where, ids + 1)


def test_an_unpacked_model_multiplies_by_the_same_weights(small_model, tmp_path):
    quantize(small_model, tmp_path / "out", "rtn-2bit", settings={"precision.block_size": 16})
    packed, plain = load(tmp_path / "out"), load(tmp_path / "out").unpack()
    assert plain.bits() == packed.bits()
    assert packed.packed() and not plain.packed()
    ids = torch.arange(24).view(2, 12)
    assert torch.allclose(packed(ids).logits, plain(ids).logits, atol=1e-5)
