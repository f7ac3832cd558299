"""A talk in the terminal, piped and live."""

import io

import pytest
from rich.console import Console
from rich.text import Text

from quant_dllm.cli.canvas import caption, drawn
from quant_dllm.cli.main import main
from quant_dllm.cli.talk import Talk
from quant_dllm.cli.watch import QuantizeView
from quant_dllm.cli.watch_tuning import TuningView
from quant_dllm.generation.draft import Draft
from quant_dllm.generation.generate import chosen_sampling
from quant_dllm.models.load import load
from quant_dllm.record import LayerRecord, TuningStep

TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"


@pytest.fixture(scope="module")
def model(small_model):
    return load(small_model)


def test_piped_a_line_in_is_a_line_out(capsys, monkeypatch, small_model):
    monkeypatch.setattr("sys.stdin", io.StringIO("Once upon a time\n\nOne day\n"))
    assert main(["chat", str(small_model), "--length", "4"]) == 0
    out = capsys.readouterr().out.strip()
    assert out.startswith("Once upon a time") and "\nOne day" in out and "\x1b" not in out


def test_turns_are_remembered_and_forgotten_where_there_is_no_room(monkeypatch, model):
    monkeypatch.setattr(model.tokenizer, "chat_template", TEMPLATE)
    talk = Talk(model, {}, length=8, system="Be brief.")
    for line in ("one", "two", "three", "four"):
        talk._answer(line)
    assert talk.turns[-2]["content"] == "four" and len(talk.turns) < 8
    assert "Be brief." in talk._prompt("five")


def test_a_canvas_shows_what_is_hidden_and_how_sure(model):
    draft = Draft.begin(model, "Once", chosen_sampling(model, 8, {}), length=8, watched=True)
    steps = draft.steps()
    for _ in range(3):
        next(steps)
    assert drawn(draft).plain.count("░░") == 5
    assert "step 3 of 8" in caption(draft).plain
    plain = Console(file=io.StringIO(), no_color=True, force_terminal=True, width=40)
    plain.print(drawn(draft))
    assert "38;5" not in plain.file.getvalue()


def test_the_live_view_fits_a_narrow_terminal():
    view = QuantizeView(blocks=2)
    record = LayerRecord(
        name="model.transformer.blocks.0.q_proj", kind="binary", shape=[40, 40], code_bits=2.0,
        stored_bits=2.4, orders={"2": 3}, error=0.01, tokens=100, seconds=0.5, layout={},
    )  # fmt: skip
    list(view([record], "quantizing by x", 14))
    view.total = 14
    for width in (30, 80, 200):
        console = Console(file=io.StringIO(), width=width, force_terminal=True)
        console.print(view.picture("quantizing by x", width))
        shown = Text.from_ansi(console.file.getvalue()).plain
        assert "block 1 of 2" in shown and "0.q_proj" in shown and "1.0e-02" in shown
        assert max(map(len, shown.splitlines())) <= width


def test_tuning_is_seen_live_and_piped(capsys):
    curves = [[0.4], [0.4, 0.2], [0.4, 0.2, 0.1]]
    steps = [
        TuningStep(done=2 * i + 1, steps=6, tokens=64, loss=0.3, curve=curve, seconds_left=75.0)
        for i, curve in enumerate(curves)
    ]
    view = TuningView()
    assert list(view(steps, "tuning")) == steps
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[0] for line in lines] == ["tuning=3/6", "tuning=5/6"]  # a line a look
    assert "validation=0.1000 first=0.4000" in lines[-1] and "left_s=75" in lines[-1]
    for width in (30, 80):
        console = Console(file=io.StringIO(), width=width, force_terminal=True)
        console.print(view.picture("tuning"))
        shown = Text.from_ansi(console.file.getvalue()).plain
        assert "update 5 of 6" in shown and "0.1000" in shown and "1:15 left" in shown
        assert max(map(len, shown.splitlines())) <= width
