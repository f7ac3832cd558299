"""lm-eval's tasks, from local definitions: no network, no downloaded data set."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import quant_dllm
from quant_dllm.cli.main import main
from quant_dllm.models.source import locate
from tests.conftest import ROUNDED, SMALL_RECIPE

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from tasks import CHOICE, DATA, WRITING, define, read

pytest.importorskip("lm_eval")


@pytest.fixture(scope="module")
def packed_small(small_model, tmp_path_factory):
    out = tmp_path_factory.mktemp("tasks") / "packed"
    quant_dllm.quantize(small_model, out, ROUNDED, settings=SMALL_RECIPE)
    return out


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("QUANT_DLLM_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def tasks(tmp_path):
    folder = tmp_path / "tasks"
    folder.mkdir()
    choices = ["the sun was warm", "a dog"]
    rows = [
        {"query": f"Once {i} upon a time,", "choices": choices, "gold": i % 2} for i in range(4)
    ]
    define(folder, "choose_one", CHOICE, rows)
    rows = [{"context": "Tom had a", "answer": "cat"}, {"context": "The", "answer": "end"}]
    define(folder, "write_on", WRITING, rows, tokens=8)
    return folder


def test_scores_stand_beside_the_16_bit_models(capsys, packed_small, tasks):
    words = ["evaluate", packed_small, "--tasks", "choose_one,write_on", "--task-path", tasks,
             "--limit", 2, "--draws", 8, "--json"]  # fmt: skip
    assert main([str(w) for w in words]) == 0
    choose, write = json.loads(capsys.readouterr().out)["tasks"]
    assert set(choose["run"]["metrics"]) == {"acc", "acc_norm"}
    assert choose["run"]["calls"] == choose["base"]["calls"] == 2 * 2 * 8
    assert choose["run"]["weights"] != choose["base"]["weights"]
    assert not choose["base"]["cached"]
    assert write["run"]["calls"] > 0 and "exact_match" in write["run"]["metrics"]
    assert set(choose["recovery_percent"]) == {"acc", "acc_norm"}
    assert main([str(w) for w in words]) == 0
    again = json.loads(capsys.readouterr().out)["tasks"]
    assert all(score["base"]["cached"] for score in again)
    assert [s["run"]["metrics"] for s in again] == [
        choose["run"]["metrics"],
        write["run"]["metrics"],
    ]


def test_two_processes_score_as_one_does(capsys, small_model, tasks):
    words = ["evaluate", small_model, "--tasks", "choose_one,write_on", "--task-path", tasks,
             "--limit", 3, "--draws", 8, "--json"]  # fmt: skip
    words = [str(word) for word in words]
    assert main(words) == 0
    one = json.loads(capsys.readouterr().out)["tasks"]
    command = [sys.executable, "-m", "quant_dllm.cli.main", *words, "--gpus", "2"]
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    said = subprocess.run(command, env=os.environ | threads, stdout=subprocess.PIPE, check=True)
    two = json.loads(said.stdout)["tasks"]
    assert [task["task"] for task in two] == [task["task"] for task in one] and len(one) == 2
    for mine, theirs in zip(one, two, strict=True):
        assert theirs["run"]["metrics"] == mine["run"]["metrics"]
        assert theirs["run"]["calls"] == mine["run"]["calls"] > 0


def test_the_table_names_both_and_the_calls(capsys, small_model, tasks):
    words = ["evaluate", small_model, "--against", small_model, "--tasks", "choose_one",
             "--task-path", tasks, "--limit", 2, "--draws", 8]  # fmt: skip
    assert main([str(w) for w in words]) == 0
    out = capsys.readouterr().out
    assert "100.0" in out or "acc" in out
    assert "32, 32" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tasks", "no_such_task"], "lm-eval does not know the task no_such_task"),
        (["--suite", "quant-dlm"], "Did you mean 'quant-dllm'"),
        (["--tasks", "choose_one", "--draws", "12"], "1 or a multiple of 8"),
        (["--tasks", "choose_one", "--limit", "0"], "or equal to 1"),
    ],
)
def test_what_cannot_be_scored_is_refused(capsys, small_model, words, message):
    assert main(["evaluate", str(small_model), *words]) == 2
    assert message in capsys.readouterr().err


def test_likelihood_on_an_instruct_model_gets_a_warning(small_model, caplog, monkeypatch):
    from quant_dllm.evaluation.harness import QuantDLLM

    ours = logging.getLogger("quant_dllm")
    monkeypatch.setattr(ours, "propagate", True)
    monkeypatch.setattr(ours, "handlers", [])  # an earlier test's command line set its own
    model = QuantDLLM(small_model)
    caplog.clear()
    model._warn_of_instruct()
    assert not caplog.records
    model.model.source.folder.config["_name_or_path"] = "LLaDA-8B-Instruct"
    model._warn_of_instruct()
    assert "says little about what it knows" in caplog.text


def test_requests_become_the_familys_form(small_model):
    from quant_dllm.evaluation.harness import QuantDLLM
    from quant_dllm.models.scoring import Scoring

    model = QuantDLLM(small_model)
    ids = model._ids
    answer = model._answer("Once upon ", "a time", "hellaswag")
    assert answer.before == ids("Once upon") and answer.text == ids("Once upon a time")
    assert answer.guidance == 0.5 and answer.draws == 128 and answer.behind == ()
    assert model._answer("Once", " upon a", "winogrande").guidance == 0.0
    assert model._answer("Once", " upon a", "mmlu_law").draws == 1
    model.scoring = Scoring(hiding="rate", stratum=32, bos=True, eos=True)
    framed = model._answer("Once", " upon a", "piqa")
    end = model.tokenizer.eos_token_id
    assert framed.before[0] == end and framed.behind == (end,)  # no bos of its own, as in Qwen
    long = model._answer("Once upon a time " * 40, "there", "piqa")
    assert len(long.text) == 64 and long.tokens == answer_tokens(model, "there")


def answer_tokens(model, word):
    return model._ids(f"time {word}")[len(model._ids("time")) :]


def test_a_text_is_scored_in_pieces_of_the_context(small_model):
    from lm_eval.api.instance import Instance

    from quant_dllm.evaluation.harness import QuantDLLM

    model = QuantDLLM(small_model, draws=8)
    text = "Once upon a time there was a little dog. " * 12
    request = Instance("loglikelihood_rolling", {}, (text,), 0)
    found = model.loglikelihood_rolling([request])[0]
    assert found < 0 and model.calls == 8 * -(-len(model._ids(text)) // 64)


def test_greedy_answers_are_what_the_model_writes(small_model):
    from quant_dllm.evaluation.harness import QuantDLLM

    model = QuantDLLM(small_model, check_greedy=True)
    story = quant_dllm.generate(
        model.model, "Once upon a time", length=4, block_length=4, stop=False
    )
    before = model._ids("Once upon a time")
    right = model._framed(before, tuple(story.token_ids), "")
    wrong = model._framed(before, (story.token_ids[0] + 1, *story.token_ids[1:]), "")
    assert model._is_greedy(right) and not model._is_greedy(wrong)


def test_lm_eval_knows_the_model_by_name():
    from lm_eval.api.registry import get_model

    from quant_dllm.evaluation.harness import QuantDLLM

    assert get_model("quant-dllm") is QuantDLLM


@pytest.mark.skipif(not DATA.is_dir(), reason=f"no {DATA}")
def test_real_tasks_on_tiny(capsys, tmp_path):
    if not (locate("tiny") / "model.safetensors").is_file():
        pytest.skip("tiny is not bundled")
    folder = tmp_path / "real"
    folder.mkdir()
    define(folder, "local_piqa", CHOICE, read("piqa")[:3])
    define(folder, "local_gsm8k", WRITING, read("gsm8k")[:2], tokens=8)
    words = ["evaluate", "tiny", "--tasks", "local_piqa,local_gsm8k", "--task-path", folder,
             "--draws", 8, "--json"]  # fmt: skip
    assert main([str(w) for w in words]) == 0
    piqa, gsm8k = json.loads(capsys.readouterr().out)["tasks"]
    assert piqa["run"]["calls"] == 3 * 2 * 8 and piqa["base"] is None
    assert 0 <= piqa["run"]["metrics"]["acc"][0] <= 1
    assert gsm8k["run"]["metrics"]["exact_match"][0] == 0.0  # tiny tells stories
