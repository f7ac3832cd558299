"""What a refused request looks like: one line, exit 2, nothing left behind."""

from quant_dllm.cli.main import main
from tests.conftest import ROUNDED, SMALL_RECIPE

SETS = [word for key, value in SMALL_RECIPE.items() for word in ("--set", f"{key}={value}")]
SMALL = ["-r", ROUNDED, *SETS]


def refused(capsys, tmp_path, argv, *messages):
    """Run the command line; it must end with 2 and one line, and leave nothing new behind."""
    before = sorted(tmp_path.iterdir())
    assert main([str(word) for word in argv]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    progress = ("ABMP moves", "quantizing by ", "done=")  # never that a model was loaded
    said = [line for line in err.splitlines() if not line.startswith(progress)]
    assert len(said) == 1, err
    for message in messages:
        assert message in err, err
    assert sorted(tmp_path.iterdir()) == before
    return err


def quantize(model, tmp_path, *words):
    return ["quantize", model, "-o", tmp_path / "out", *SMALL, *words]
