import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import claims
import demo
import kernel_tables
import kills
import quantize
import questions
import records
from quant_dllm.record import ComparisonRecord
from quant_dllm.report.table import RATIOS, Row


def record(backend, order, tokens, median):
    return {
        "what": "binary_linear", "backend": backend, "order": order, "in": 4096, "out": 4096,
        "tokens": tokens, "threads": 1, "median_us": median, "iqr_us": 3.0, "processor": "P",
        "torch": "2", "commit": "c", "date": "d",
    }  # fmt: skip


@pytest.fixture
def found():
    made = [record("avx2", 2, 1, 100.0), record("avx2", 2, 8, 500.0), record("avx2", 3, 1, 150.0)]
    made += [record("torch bfloat16", 0, 1, 900.0), record("torch bfloat16", 0, 8, 1000.0)]
    return [*made, {"what": "ceiling", "lookups_per_s": 1e12}]


def test_tables_say_what_is_missed(found):
    text = kernel_tables.text(found, {"avx2": {1: 8, 8: 2.6}})
    assert "| 4096→4096, over torch bfloat16 | 1 | 9.00 | 2.00 (missed) |" in text
    assert "| 4096→4096 | 1 | avx2, order 3 | 0.15 ± 0.003 | - |" in text
    assert "| M = 1 | 336 | 84 | 8% |" in text  # 2 · 4096² / 100 µs; 4096² / 2 look-ups


def test_tables_stand_between_their_marks(found, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{kernel_tables.BEGIN}\nold\n{kernel_tables.END}\nafter\n")
    kernel_tables.write([found], {}, page)
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    kernel_tables.write([found], {}, page)
    assert page.read_text() == text


def test_a_spread_has_units():
    found = records.spread([1e-3, 2e-3, 3e-3, 4e-3, 5e-3])
    assert found == {"median_us": 3000.0, "iqr_us": 2000.0, "min_us": 1000.0, "runs": 5}


def test_kills_of_a_phase_are_one_row_and_failures_show():
    def kill(phase, found, equal=True, **more):
        return {
            "phase": phase,
            "moment": "m",
            "found": found,
            "resumed": "exit 0",
            "equal": equal,
        } | more

    text = kills.short([
        kill("rounding", "1 blocks, 2 layers"), kill("rounding", "nothing"),
        kill("renaming", "2 blocks, 0 layers", equal=False),
        kill("hostile", "nothing", refused="OUT: the disk is full. Free space."),
    ])  # fmt: skip
    assert "| rounding | 2 | nothing … 1 blocks, 2 layers | exit 0 | yes |" in text
    assert "| renaming | 1 | 2 blocks, 0 layers | exit 0 | **0 of 1** |" in text
    assert "| m | nothing | OUT: the disk is full; then exit 0 | yes |" in text


def test_the_readme_shows_the_records_of_the_demo():
    page, found = demo.PAGE.read_text(), records.read(demo.COMPARED)
    assert f"{demo.BEGIN}\n\n{demo.table(found)}\n{demo.END}" in page


def test_a_page_keeps_what_is_outside_the_marks(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- a -->\nold\n<!-- b -->\nafter\n")
    for _ in range(2):
        records.write_between(page, "<!-- a -->", "<!-- b -->", "new")
    assert page.read_text() == "before\n<!-- a -->\n\nnew\n\n<!-- b -->\nafter\n"


def run(name, seed, kl):
    evaluation = {
        "kl": kl, "kl_by_mask_ratio": dict.fromkeys(RATIOS, kl), "bits": {"stored": 2.0},
    }  # fmt: skip
    errors = {"blocks.0.mlp.down": kl, "blocks.0.attention.q": 2 * kl}
    return ComparisonRecord(
        identity=f"{name}{seed}", model="m", recipe={"name": name}, seed=seed,
        evaluation=evaluation, layer_errors=errors, bytes_on_disk=1, seconds=1.0,
        peak_memory=None, machine="m",
    )  # fmt: skip


def table(**kls):
    names = {"a": questions.RELEASE, "b": "ablation-no-lambda"}
    return {names[k]: Row(names[k], tuple(run(k, seed, kl) for seed, kl in enumerate(found)))
            for k, found in kls.items()}  # fmt: skip


LAMBDA = next(q for q in questions.QUESTIONS if q.no == "ablation-no-lambda")


@pytest.mark.parametrize(
    ("without", "verdict"),
    [
        ([0.31, 0.32, 0.32], "yes"),
        ([0.11, 0.12, 0.12], "no: worse"),
        ([0.1, 0.3, 0.22], "unclear"),  # the mean of three is less than 4.3 of its errors from 0
        ([0.31], "one seed"),
    ],
)
def test_an_answer_is_certain_by_the_seeds_that_both_have(without, verdict):
    answer = questions.Answer.of(LAMBDA, table(a=[0.2, 0.21, 0.22], b=without))
    assert answer is not None and answer.verdict() == verdict
    assert len(answer.pairs) == len(without)


def test_models_that_contradict_each_other_are_said_to():
    yes = table(a=[0.2, 0.21, 0.22], b=[0.31, 0.32, 0.32])
    no = table(a=[0.2, 0.21, 0.22], b=[0.11, 0.12, 0.12])
    text = claims.holds({"one": yes, "two": no})
    assert "**Holds on one model, and the reverse on the other**" in text
    assert f"| {LAMBDA.text} | paper | -0.107 ± 0.006: yes | 0.093 ± 0.006: no: worse |" in text
    assert "**Holds on both models**" in claims.holds({"one": yes, "two": yes})


def test_errors_of_layers_are_told_by_kind():
    found = table(a=[0.2, 0.4], b=[0.1, 0.2])
    assert claims.of_kind(found[questions.RELEASE], ("q", "k")) == [0.4, 0.8]
    assert claims.of_kind(found[questions.RELEASE], ("down",), {1}) == [0.4]


def test_a_table_of_seconds_says_what_is_missed():
    def timed(recipe, median, ratio):
        return {"what": "quantize_layer", "layer": "L", "recipe": recipe, "median_s": median,
                "iqr_s": 0.1, "times_gptq": ratio, "processor": "P", "threads": 2,
                "torch": "2", "runs": 3}  # fmt: skip

    text = quantize.tables([
        timed("gptq-2bit", 1.0, 1.0), timed("arb-llm", 9.0, 9.0),
        timed("quant-dllm-2bit-release", 4.0, 4.0),
    ])  # fmt: skip
    assert "| `arb-llm` | 9.00 ± 0.10 | 9.00 |" in text
    assert "| `quant-dllm-2bit-release` | 4.00 ± 0.10 | 4.00 (missed) |" in text
