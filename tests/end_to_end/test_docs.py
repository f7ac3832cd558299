"""Every command in README and docs runs, in the order in which a reader types them.

Models are replaced by a small random one and texts by a short one; runs look at less text. With
``-m slow`` the commands on ``tiny`` run exactly as they are written.

``python -m tests.end_to_end.test_docs`` lists what is run, what is only parsed, and
what of make and python is only looked for.
"""

import gzip
import io
import json
import os
import re
import shlex
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import typer

from quant_dllm.cli.main import VERBS, app, main
from quant_dllm.models.source import locate
from quant_dllm.recipe import DEFAULT
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
LESS_TUNING = [
    "--set", "tuning.steps=2", "--set", "tuning.batch=1", "--set", "tuning.validation=2",
]  # fmt: skip
UNREACHABLE = ("--suite", "--tasks")  # need tasks of lm-eval from the network: only parsed
LONG = ("demo", "resume")  # minutes, `make demo` is its test; wants a stopped run, see test_resume
LAUNCHED = ("torchrun ", "-m quant_dllm.cli.main ")
EXAMPLES = [f.__doc__.partition("Example: ")[2].strip() for f in VERBS.values()]


def commands(text: str) -> list[str]:
    """List the lines of code blocks that begin with our command."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.S | re.M)
    shell = [block for language, block in blocks if language in ("", "bash", "sh", "console")]
    lines = [line for block in shell for line in block.splitlines()]
    lines += re.findall(r"^    (\S.*)$", text, re.M)
    words = (line.strip().removeprefix("$ ").removeprefix(".venv/bin/") for line in lines)
    return [line for line in words if line.startswith(("quant-dllm ", LAUNCHED[0]))]


def chores(text: str) -> list[str]:
    """List the indented lines that call make or python: what a contributor types."""
    lines = re.findall(r"^    ((?:make|python) \S.*)$", text, re.M)
    return [line.partition("#")[0].strip() for line in lines]


def page_commands() -> dict[str, list[str]]:
    """List the commands of each page; the reference's are the examples of the help texts."""
    found = {page: commands((HOME / page).read_text()) for page in PAGES}
    found["docs/reference.md"] = []
    return {page: lines for page, lines in found.items() if lines}


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory):
    config = CONFIG | {"n_layers": 1, "max_sequence_length": 256}
    model = save_model(tmp_path_factory.mktemp("docs") / "model", config)
    words = json.loads((model / "tokenizer_config.json").read_text())
    words["chat_template"] = "{% for turn in messages %}{{ turn.content }}<|endoftext|>{% endfor %}"
    (model / "tokenizer_config.json").write_text(json.dumps(words))
    return model


@pytest.fixture
def at_home(tmp_path, monkeypatch):
    """A folder with the texts that the pages name, and nobody at the keyboard."""
    monkeypatch.chdir(tmp_path)
    text = gzip.decompress((locate("tiny") / "heldout.txt.gz").read_bytes()).decode()
    for name in ("texts.txt", "held-out.txt"):
        Path(name).write_text(text[:200_000])
    turns = [{"messages": [{"role": "user", "content": text[i : i + 500]}]}
             for i in range(0, 200_000, 500)]  # fmt: skip
    Path("chats.jsonl").write_text("\n".join(map(json.dumps, turns)))
    (recipe,) = re.findall(r"```yaml\n(.*?)```", (HOME / "docs" / "how-to.md").read_text(), re.S)
    Path("mine.yaml").write_text(recipe)
    monkeypatch.setattr("sys.stdin", io.StringIO("Once upon a time\n"))
    served = []
    monkeypatch.setattr("quant_dllm.cli.listen.listen", lambda *args: served.append(args))
    return tmp_path


def shortened(line: str, model: Path) -> list[str]:
    """Put the small model and less text into a command."""
    words = [
        str(model) if w == "tiny" or HUB.match(w) else w
        for w in shlex.split(line, comments=True)[1:]
    ]
    if "cuda" in words:
        at = words.index("cuda")
        words[at - 1 : at + 1] = []
    less = list(LESS.get(words[0], []))
    for option in ("--length", "--block-length", "--draws", "--seeds", "--sequences"):
        if option in words and option in less:
            at = words.index(option)
            words[at : at + 2] = []
    recipe = words[words.index("-r") + 1] if "-r" in words else DEFAULT
    if words[0] in ("quantize", "plan") and recipe == DEFAULT:
        less += LESS_TUNING
    if words[0] == "compare":  # takes no settings
        words = [f"{DEFAULT}-untuned" if word == DEFAULT else word for word in words]
    return words + less


def prepare(verb: str, words: list[str], model: Path) -> None:
    """Make the checkpoint that a command of its own works on."""
    for name in words:
        wanted = re.fullmatch(r"[\w-]+-(2bit|gptq)", name) and verb not in ("quantize", "plan")
        if wanted and not Path(name).exists():
            main(["quantize", str(model), "-o", name, "-r", "rtn-2bit"])


def only_parsed(words: list[str]) -> bool:
    """Tell whether a command wants what no test has: hours, or a network."""
    return words[0] in LONG or any(word in UNREACHABLE for word in words)


def run(line: str, model: Path) -> None:
    if line.startswith(LAUNCHED[0]):
        run_by_torch(line, model)
        return
    words = shortened(line, model)
    if only_parsed(words):
        assert words[0] in VERBS and parses(words), line
    elif "--gpus" in words:
        words[words.index("--gpus") + 1] = "2"
        in_processes(["-m", "quant_dllm.cli.main", *words])
    else:
        prepare(words[0], words[1:], model)
        assert main(words) == 0, line


def parses(words: list[str]) -> bool:
    """Read the options of a command as the command line does, and do nothing."""
    command = typer.main.get_command(app).commands[words[0]]  # type: ignore[attr-defined]
    return bool(command.make_context(words[0], words[1:]).params)


def run_by_torch(line: str, model: Path) -> None:
    """Check torchrun's own options; then let it start one process here."""
    from torch.distributed.run import get_args_parser

    launcher, _, ours = line.partition(LAUNCHED[1])
    asked = get_args_parser().parse_args([*shlex.split(launcher)[1:], "-m", "quant_dllm.cli.main"])
    assert int(asked.nproc_per_node) > 1
    words = shortened(f"quant-dllm {ours}", model)
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
    in_processes([*start, "-m", "quant_dllm.cli.main", *words])


def in_processes(words: list[str]) -> None:
    """Run a command that starts others."""
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
    ended = subprocess.run([sys.executable, *words], env=one_thread, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


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


def test_the_list_of_commands_names_them_all(capsys):
    listed()
    out = capsys.readouterr().out
    assert all(line in out for lines in page_commands().values() for line in lines)


def test_what_contributors_type_is_there():
    for page in PAGES:
        for line in chores((HOME / page).read_text()):
            program, *words = shlex.split(line)
            if program == "make":
                dry = ["make", "--directory", str(HOME), "--dry-run", *words]
                assert subprocess.run(dry, capture_output=True).returncode == 0, line
            for word in words:
                named = "/" in word or word.endswith(".py")
                assert not named or (HOME / word).exists(), f"{line}: {word}"


@pytest.mark.slow
def test_the_tutorial_runs_as_it_is_written(at_home, capsys):
    for line in commands((HOME / "docs" / "tutorial.md").read_text()):
        assert main(shlex.split(line)[1:]) == 0, line


def listed() -> None:
    """Print every command, and whether it is run or only parsed."""
    for page, lines in (page_commands() | {"--help": EXAMPLES}).items():
        print(page)
        for line in lines:
            words = shlex.split(line)[1:]
            print(f"  {'parsed' if only_parsed(words) else 'run   '}  {line}")
    for page in PAGES:
        for line in chores((HOME / page).read_text()):
            print(f"{page}\n  there   {line}")


if __name__ == "__main__":
    listed()
