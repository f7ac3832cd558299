"""What a run leaves for people: page, card, events, plan; each held against the run itself."""

import json
import re
from html.parser import HTMLParser

import pytest

from quant_dllm.cli.main import main
from quant_dllm.errors import RequestError
from quant_dllm.pipeline.leave import gather, leave
from quant_dllm.pipeline.quantize import quantize
from quant_dllm.planning.plan import plan
from quant_dllm.report import figures
from quant_dllm.report.svg import Scale
from tests.conftest import ROUNDED, SMALL_RECIPE

MIXED = SMALL_RECIPE | {"precision.ratio": 0.5, "precision.block_size": 8}


@pytest.fixture(scope="module")
def packed(small_model, tmp_path_factory):
    out = tmp_path_factory.mktemp("report") / "packed"
    quantize(small_model, out, ROUNDED, settings=MIXED)
    return out


class Balanced(HTMLParser):
    """Fails on elements that are closed wrongly."""

    VOID = ("meta", "input", "link", "br")

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.addresses = [], set(), []

    def handle_starttag(self, tag, attrs):
        self.seen.add(tag)
        self.addresses += [v for k, v in attrs if k in ("src", "href", "action", "data")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_every_run_leaves_a_page_a_card_and_events(packed):
    page = Balanced()
    page.feed((packed / "report.html").read_text())
    assert not page.open and "svg" in page.seen and not page.addresses
    card = (packed / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: quant-dllm\n") and "Nothing yet" in card
    events = [json.loads(line) for line in (packed / "events.jsonl").read_text().splitlines()]
    assert [e["event"] for e in events] == ["start", *["layer"] * 14, "end"]
    record = gather(packed).record
    assert [e["layer"] for e in events[1:-1]] == [layer.name for layer in record.layers]
    assert (
        "--set precision.ratio=0.5" in card and "calibration.prompt" not in card.split("| part")[0]
    )
    assert str(packed.parent) not in card + (packed / "report.html").read_text()


def test_the_map_is_what_is_stored(packed):
    found = gather(packed)
    assert {k for bits in found.bits.values() for k in bits} == {1, 2, 3}
    for layer in found.record.layers:
        bits = list(found.bits[layer.name])
        assert layer.orders == {str(k): bits.count(k) for k in sorted(set(bits))}
    svg = figures.bits_map(found.record.layers, found.bits)
    drawn = {k: svg.count(f'class="cell b{k}"') - 1 for k in (1, 2, 3)}  # less the key
    wanted = [k for bits in found.bits.values() for k in bits]
    assert drawn == {k: wanted.count(k) for k in (1, 2, 3)}


def test_the_parts_of_the_file_add_up(packed):
    found = gather(packed)
    whole = (packed / "model.safetensors").stat().st_size
    assert sum(found.file_bytes.values()) == pytest.approx(whole)
    assert {name for name, count in found.file_bytes.items() if count > 0} == {
        "codes", "scales", "other"
    }  # fmt: skip


def test_a_report_measures_and_lets_both_write(capsys, packed, small_model, tmp_path):
    argv = ["report", packed, "--against", small_model, "--sequences", 3, "--length", 8,
            "--prompt", "A <b> & a cat", "--json"]  # fmt: skip
    assert main([str(word) for word in argv]) == 0
    assert json.loads(capsys.readouterr().out)["bytes"] > 10_000
    text = (packed / "report.html").read_text()
    assert "A &lt;b&gt; &amp; a cat" in text and "<b> & a cat" not in text
    measured = json.loads((packed / "report.json").read_text())
    for answer in measured["samples"][0]["answers"]:
        positions = [event[1] for event in answer["events"]]
        assert len(positions) == len(set(positions)) <= 8
        assert all(0 <= event[3] <= 1 for event in answer["events"])
    assert f"{measured['evaluation']['kl']:.4f}" in (packed / "README.md").read_text()
    before = text
    leave(packed)
    assert (packed / "report.html").read_text() == before


def test_what_is_no_checkpoint_is_refused(small_model, tmp_path, capsys):
    with pytest.raises(RequestError, match="not a checkpoint"):
        gather(small_model)
    assert main(["report", str(small_model)]) == 2
    assert main(["push", str(small_model), "me/mine", "--dry-run"]) == 2
    capsys.readouterr()


def test_a_push_lists_what_it_would_upload(capsys, packed):
    assert main(["push", str(packed), "me/mine", "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"README.md", "config.json", "model.safetensors"} <= set(found["files"])
    assert main(["push", str(packed), "mine", "--dry-run"]) == 2
    assert "USER/REPO" in capsys.readouterr().err


SMALLEST = {
    "quantizer.scales": 8, "outside": "grouped", "outside.bits": 4, "outside.finer": 0.05,
    "outside.behind": True,
}  # fmt: skip


@pytest.mark.parametrize(
    ("recipe", "more"),
    [(ROUNDED, {}), ("gptq-2bit", {}), ("awq-3bit", {}), (ROUNDED, SMALLEST)],
)
def test_a_plan_is_what_the_run_gives(small_model, tmp_path, recipe, more):
    settings = SMALL_RECIPE | more
    foreseen = plan(small_model, recipe, settings=settings)
    record = quantize(small_model, tmp_path / "out", recipe, settings=settings)
    found = gather(tmp_path / "out")
    assert foreseen.bits.code == pytest.approx(record.bits.code, rel=0.1)
    assert foreseen.bits.stored == pytest.approx(record.bits.stored, rel=0.1)
    assert foreseen.weight_bytes == pytest.approx(sum(found.file_bytes.values()), rel=0.02)
    assert foreseen.layers == len(record.layers)


def test_a_timed_plan_says_a_time(small_model):
    found = plan(small_model, "gptq-2bit", settings=SMALL_RECIPE, timed=True)
    assert found.seconds and found.memory_bytes > 1e6


def test_a_plan_refuses_what_would_fail(capsys, small_model, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").touch()
    assert main(["plan", str(small_model), "-o", str(tmp_path / "there")]) == 2
    assert main(["plan", str(small_model), "--bits", "9"]) == 2
    assert main(["plan", "nobodys-model"]) == 2
    assert main(["plan", str(small_model), "-r", "rtn-2bit", "--bits", "3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bits"]["code"] == 3.0


def test_ticks_are_round_and_inside():
    assert Scale(0, 10, 0, 1).ticks() == [0, 2, 4, 6, 8, 10]
    log = Scale(2e-3, 0.4, 0, 1, log=True)
    assert all(2e-3 <= tick <= 0.4 for tick in log.ticks()) and len(log.ticks()) >= 3
    assert log(2e-3) == 0 and log(0.4) == pytest.approx(1)


def test_piped_a_line_a_layer(capsys, small_model, tmp_path):
    argv = ["quantize", small_model, "-o", tmp_path / "o", "-r", "rtn-2bit"]
    assert main([str(word) for word in argv]) == 0
    lines = [x for x in capsys.readouterr().err.splitlines() if x.startswith("done=")]
    assert len(lines) == 14
    facts = dict(re.findall(r"(\S+?)=(\S+)", lines[-1]))
    assert facts["done"] == "14/14" and facts["block"] == "2/2" and facts["left_s"] == "0"
    assert {"layer", "error", "tokens_per_second", "peak_mb", "elapsed_s"} <= set(facts)
