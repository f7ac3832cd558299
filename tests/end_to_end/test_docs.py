"""Every command in README and docs runs, in the order in which a reader types them.

Models are replaced by a small random one and texts by a short one; runs look at less text. With
``-m slow`` the commands on ``tiny`` run exactly as they are written.
"""

import gzip
import io
import re
import shlex
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from quant_dllm.cli.main import VERBS, main
from quant_dllm.models.source import locate
from tests.conftest import CONFIG, save_model

HOME = Path(__file__).parents[2]
PAGES = ["README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in (HOME / "docs").glob("*.md"))]
HUB = re.compile(r"^[\w.-]+/(LLaDA|Dream|SDAR)[\w.-]*$")
LESS = {
    "quantize": ["--set", "calibration.sequences=4", "--set", "calibration.length=32"],
    "evaluate": ["--sequences", "2", "--length", "16", "--draws", "1"],
    "compare": ["--sequences", "2", "--length", "16", "--draws", "1", "--seeds", "1"],
    "report": ["--sequences", "2", "--length", "8"],
    "generate": ["--length", "8", "--block-length", "8"],
    "chat": ["--length", "8", "--block-length", "8"],
    "plan": ["--set", "calibration.sequences=4", "--set", "calibration.length=32"],
}
UNREACHABLE = ("--suite", "--tasks")  # need tasks of lm-eval from the network: only parsed
LONG = ("demo", "resume")  # minutes, `make demo` is its test; wants a stopped run, see test_resume
EXAMPLES = [f.__doc__.partition("Example: ")[2].strip() for f in VERBS.values()]


def commands(text: str) -> list[str]:
    """List the lines of code blocks that begin with our command."""
    blocks = re.findall(r"```(?:bash|sh|console)?\n(.*?)```", text, re.S)
    lines = [line for block in blocks for line in block.splitlines()]
    lines += re.findall(r"^    (\S.*)$", text, re.M)
    words = (line.strip().removeprefix("$ ").removeprefix(".venv/bin/") for line in lines)
    return [line for line in words if line.startswith("quant-dllm ")]


def page_commands() -> dict[str, list[str]]:
    """List the commands of each page; the reference's are the examples of the help texts."""
    found = {page: commands((HOME / page).read_text()) for page in PAGES}
    found["docs/reference.md"] = []
    return {page: lines for page, lines in found.items() if lines}


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory):
    config = CONFIG | {"n_layers": 1, "max_sequence_length": 256}
    return save_model(tmp_path_factory.mktemp("docs") / "model", config)


@pytest.fixture
def at_home(tmp_path, monkeypatch):
    """A folder with the texts that the pages name, and nobody at the keyboard."""
    monkeypatch.chdir(tmp_path)
    text = gzip.decompress((locate("tiny") / "heldout.txt.gz").read_bytes()).decode()
    for name in ("texts.txt", "held-out.txt"):
        Path(name).write_text(text[:200_000])
    monkeypatch.setattr("sys.stdin", io.StringIO("Once upon a time\n"))
    served = []
    monkeypatch.setattr("quant_dllm.cli.listen.listen", lambda *args: served.append(args))
    return tmp_path


def shortened(line: str, model: Path) -> list[str]:
    """Put the small model and less text into a command."""
    words = [str(model) if w == "tiny" or HUB.match(w) else w for w in shlex.split(line)[1:]]
    if "cuda" in words:
        at = words.index("cuda")
        words[at - 1 : at + 1] = []
    less = list(LESS.get(words[0], []))
    for option in ("--length", "--block-length", "--draws", "--seeds", "--sequences"):
        if option in words and option in less:
            at = words.index(option)
            words[at : at + 2] = []
    return words + less


def prepare(verb: str, words: list[str], model: Path) -> None:
    """Make the checkpoint that a command of its own works on."""
    for name in words:
        wanted = re.fullmatch(r"[\w-]+-(2bit|gptq)", name) and verb not in ("quantize", "plan")
        if wanted and not Path(name).exists():
            main(["quantize", str(model), "-o", name, "-r", "rtn-2bit"])


def run(line: str, model: Path) -> None:
    words = shortened(line, model)
    if words[0] in LONG or any(word in UNREACHABLE for word in words):
        assert words[0] in VERBS and main([words[0], "--help"]) == 0
        return
    prepare(words[0], words[1:], model)
    assert main(words) == 0, line


@pytest.mark.parametrize("page", page_commands())
def test_every_command_of_a_page_runs(page, stand_in, at_home, capsys):
    for line in page_commands()[page]:
        run(line, stand_in)
    capsys.readouterr()


@pytest.mark.parametrize("line", [line for line in EXAMPLES if line])
def test_every_example_of_a_help_text_runs(line, stand_in, at_home, capsys):
    run(line, stand_in)
    capsys.readouterr()


def test_every_help_text_has_an_example():
    assert all(EXAMPLES) and len(EXAMPLES) == len(VERBS)


def test_the_python_of_the_readme_runs(stand_in, at_home, capsys):
    main(["quantize", str(stand_in), "-o", "first", "-r", "rtn-2bit"])
    code = "\n".join(re.findall(r"```python\n(.*?)```", (HOME / "README.md").read_text(), re.S))
    small = code.replace('"tiny"', repr(str(stand_in))).replace('sequences": 64', 'sequences": 4')
    small = small.replace("against=base)", "against=base, sequences=2, length=16, draws=1)")
    exec(small.replace("length=64", "length=8, block_length=8"), {})
    capsys.readouterr()


def test_the_reference_is_what_the_docstrings_say():
    spec = spec_from_file_location("make_reference", HOME / "docs" / "make_reference.py")
    assert spec and spec.loader
    maker = module_from_spec(spec)
    spec.loader.exec_module(maker)
    assert maker.OUT.read_text() == maker.reference(), "run python docs/make_reference.py"


def test_links_and_pictures_are_there():
    for page in PAGES:
        folder = (HOME / page).parent
        for target in re.findall(r"\]\(([^)#:]+)\)", (HOME / page).read_text()):
            assert (folder / target).exists(), f"{page} names {target}"


@pytest.mark.slow
def test_the_tutorial_runs_as_it_is_written(at_home, capsys):
    for line in commands((HOME / "docs" / "tutorial.md").read_text()):
        assert main(shlex.split(line)[1:]) == 0, line
