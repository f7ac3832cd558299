"""Arguments that several verbs share."""

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[str, typer.Argument(help="A folder, 'tiny', or a Hugging Face id.")]
Device = Annotated[str, typer.Option("--device", help="Where to compute: cpu, cuda, cuda:1 …")]
Seed = Annotated[
    int, typer.Option("--seed", min=0, max=1 << 62, help="Equal seeds give equal results.")
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on standard output, nothing else.")
]
MaskTokenId = Annotated[
    int | None,
    typer.Option("--mask-token-id", help="The mask token, where the model does not say."),
]
AttentionBlock = Annotated[
    int | None,
    typer.Option(
        "--attention-block",
        help="Block-causal attention of this many tokens, 0: full; where the model does not say.",
    ),
]
Text = Annotated[
    Path | None,
    typer.Option(
        "--text", help="UTF-8 text or .jsonl, plain or .gz; the bundled stories for tiny."
    ),
]
MaxMemory = Annotated[
    str | None,
    typer.Option(
        "--max-memory", metavar="SIZE",
        help="Hidden states a process keeps in memory, 4GB if not given; others wait on disk.",
    ),
]  # fmt: skip
Bits = Annotated[
    float | None,
    typer.Option("--bits", help="Average bits of the codes: 2, 2.25 …, the last over all layers."),
]
FileBits = Annotated[
    float | None,
    typer.Option("--file-bits", help="Bits a weight of the whole file, scales and embedding too."),
]
Gpus = Annotated[
    int, typer.Option("--gpus", min=1, help="Processes to start, one a device: 1, 2, 4, 8 …")
]
