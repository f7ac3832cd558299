"""``quant-dllm compare``."""

from pathlib import Path
from typing import Annotated

import typer

from quant_dllm.cli.options import AsJson, AttentionBlock, Device, MaskTokenId, Model, Text


def compare(
    model: Model,
    recipe: Annotated[
        list[str], typer.Option("-r", "--recipe", help="A recipe; give it again for each.")
    ],
    seeds: Annotated[int, typer.Option(min=1, help="Calibrations of each, seeded 0, 1, …")] = 3,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="Keep records, table and picture; runs are reused."),
    ] = None,
    calibration: Annotated[
        Path | None, typer.Option(help="Text to calibrate on; the bundled stories for tiny.")
    ] = None,
    text: Text = None,
    sequences: Annotated[int, typer.Option(min=1, help="Windows to measure on.")] = 64,
    length: Annotated[int, typer.Option(min=1, help="Tokens of a window.")] = 256,
    draws: Annotated[int, typer.Option(min=1, help="Masks a window for the bound.")] = 8,
    device: Device = "cpu",
    mask_token_id: MaskTokenId = None,
    attention_block: AttentionBlock = None,
    as_json: AsJson = False,
) -> None:
    """Quantize a model by several recipes and measure all of them on the same text and masks.

    Example: quant-dllm compare tiny -r gptq-2bit -r quant-dllm-2bit -o compared
    """
    from quant_dllm.cli.show import print_json, print_table, track
    from quant_dllm.evaluation.compare import Comparison, append_record, read_records
    from quant_dllm.report.pareto import draw
    from quant_dllm.report.table import COLUMNS, markdown, rows

    comparison = Comparison(
        model=model, recipes=recipe, seeds=range(seeds), calibration=calibration, text=text,
        sequences=sequences, length=length, draws=draws, device=device,
        mask_token_id=mask_token_id, attention_block=attention_block, track=track,
    )  # fmt: skip
    path = out / "records.jsonl" if out else None
    known = read_records(path) if path else {}
    found = []
    for record in comparison.run(known):
        found.append(record)
        if path and record.identity not in known:
            append_record(path, record)
    table = [row.cells() for row in rows(found)]
    if out:
        (out / "table.md").write_text(markdown(COLUMNS, table))
        draw(rows(found), out / "pareto.png", f"{model}: {seeds} calibrations of each recipe")
    if as_json:
        print_json({"model": model, "runs": [record.to_dict() for record in found]})
    else:
        print_table(
            f"{model}: {sequences} held-out windows of {length} tokens; mean ± deviation over "
            f"{seeds} calibrations", COLUMNS, table,
        )  # fmt: skip
