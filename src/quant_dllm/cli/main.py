"""``quant-dllm VERB …``: one file a verb; ``--help`` loads no torch.

Exit status: 0 done, 2 a wrong request (one line on standard error), 75 stopped or cut short, to be
gone on with, 1 a bug (a traceback).
"""

import logging
import sys
from typing import Annotated, Any

import typer

from quant_dllm.cli.bench import bench
from quant_dllm.cli.chat import chat
from quant_dllm.cli.compare import compare
from quant_dllm.cli.demo import demo
from quant_dllm.cli.doctor import doctor
from quant_dllm.cli.evaluate import evaluate
from quant_dllm.cli.generate import generate
from quant_dllm.cli.inspect import inspect
from quant_dllm.cli.plan import plan
from quant_dllm.cli.push import push
from quant_dllm.cli.quantize import quantize, resume
from quant_dllm.cli.report import report
from quant_dllm.cli.serve import serve
from quant_dllm.errors import Interrupted, PeerLost, QuantDLLMError, hint

VERBS = {
    f.__name__: f
    for f in (
        plan,
        quantize,
        resume,
        report,
        push,
        evaluate,
        generate,
        chat,
        serve,
        inspect,
        compare,
        bench,
        doctor,
        demo,
    )
}
WRONG_REQUEST, GO_ON, STOPPED = 2, 75, 130
Refusal: Any = typer.BadParameter.__mro__[2]  # click's base, wherever this typer keeps click

app = typer.Typer(
    help="Two-bit quantization of masked diffusion language models.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for _verb in VERBS.values():
    app.command()(_verb)


def _version(wanted: bool | None) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"quant-dllm {version('quant-dllm')}")
        raise typer.Exit


@app.callback()
def options(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log every layer.")] = False,
    version: Annotated[
        bool | None,
        typer.Option("--version", help="Print the version.", callback=_version, is_eager=True),
    ] = None,
) -> None:
    """Two-bit quantization of masked diffusion language models."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    root = logging.getLogger("quant_dllm")
    root.handlers, root.propagate = [handler], False
    root.setLevel(logging.DEBUG if verbose else logging.INFO)


def main(argv: list[str] | None = None) -> int:
    """Run one verb; return the exit status."""
    words = (sys.argv[1:] if argv is None else argv) or ["--help"]
    verb = next((word for word in words if not word.startswith("-")), "")
    if verb and verb not in VERBS:
        return _refuse("", f"Unknown verb {verb!r}.{hint(verb, VERBS)} Known: {', '.join(VERBS)}.")
    try:
        return app(words, prog_name="quant-dllm", standalone_mode=False) or 0
    except (Interrupted, PeerLost) as error:
        _refuse(verb, str(error))
        return GO_ON
    except QuantDLLMError as error:
        return _refuse(verb, str(error))
    except Refusal as error:
        return _refuse(verb, f"{_said(error)}. See quant-dllm {verb} --help.")
    except (KeyboardInterrupt, typer.Abort):
        print(f"quant-dllm {verb}: stopped; nothing half-written is left.", file=sys.stderr)
        return STOPPED


def _said(error: Any) -> str:
    """Write what is wrong with a word; where it came from pydantic, it does not say what it was."""
    message = error.format_message().rstrip(".")
    errors = getattr(error.__cause__, "errors", None)
    return f"{message}; found {errors()[0]['input']!r}" if errors else message


def _refuse(verb: str, message: str) -> int:
    print(f"quant-dllm{' ' if verb else ''}{verb}: {message}", file=sys.stderr)
    return WRONG_REQUEST


if __name__ == "__main__":
    sys.exit(main())
