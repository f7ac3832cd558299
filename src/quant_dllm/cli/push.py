"""``quant-dllm push``."""

from pathlib import Path
from typing import Annotated

import typer

from quant_dllm.cli.options import AsJson


def push(
    out: Annotated[Path, typer.Argument(help="A folder that quant-dllm quantize made.")],
    repo: Annotated[str, typer.Argument(metavar="USER/REPO", help="Where on the Hub.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new one private.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List what would be uploaded, and check the folder.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Upload a checkpoint with its model card to the Hugging Face hub.

    The token is huggingface_hub's own: hf auth login, or HF_TOKEN.

    Example: quant-dllm push tiny-2bit me/tiny-2bit --dry-run
    """
    from quant_dllm.cli.show import print_facts, print_json, size
    from quant_dllm.integrations.hub import upload

    found = upload(out, repo, private=private, dry_run=dry_run)
    if as_json:
        print_json(found)
        return
    total = size(sum(found["files"].values()))
    verb = "would go to" if dry_run else "are at"
    print_facts({name: size(count) for name, count in found["files"].items()})
    print(f"{len(found['files'])} files, {total}, {verb} {found['url']}")
