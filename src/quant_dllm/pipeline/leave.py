"""What a run leaves for people beside the weights: the page, and the model card."""

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from quant_dllm.checkpoint.folder import Folder
from quant_dllm.errors import RequestError
from quant_dllm.record import ComparisonRecord, RunRecord
from quant_dllm.report.card import card
from quant_dllm.report.findings import FILE, Findings, Measured
from quant_dllm.report.page import page

logger = logging.getLogger(__name__)
PAGE, CARD = "report.html", "README.md"
COMPARED = "compared.jsonl"


def leave(out: Path, scratch: Path | None = None) -> None:
    """Write page and card of a checkpoint anew, from what lies in its folder.

    Args:
        out: The folder.
        scratch: Where a page lies until it is whole, on the same disk; ``out`` if not given.

    Raises:
        RequestError: The folder is no packed checkpoint of ours.
        ModelError: Missing or damaged files.
    """
    found = gather(out)
    try:
        write(out / PAGE, page(found), scratch)
        write(out / CARD, card(found), scratch)
    except OSError as error:  # the checkpoint is whole: a page can be made at any time
        logger.warning(
            "%s or %s of %s could not be written: %s. Free space and run: quant-dllm report %s",
            PAGE, CARD, out, error.strerror, out,
        )  # fmt: skip


def gather(out: Path) -> Findings:
    """Collect all that is known of a checkpoint.

    Raises:
        RequestError: The folder is no packed checkpoint of ours.
        ModelError: Missing or damaged files.
    """
    folder = Folder(out)
    if not folder.quantization or not (out / "quant_dllm.json").is_file():
        raise RequestError(
            f"{out} is not a checkpoint that quant-dllm wrote; a report is about one. "
            "Make it with: quant-dllm quantize MODEL -o OUT"
        )
    record = RunRecord.from_dict(folder.manifest)
    measured, compared = out / FILE, out / COMPARED
    return Findings(
        name=out.name,
        record=record,
        bits=_bits(folder, record),
        file_bytes=_file_bytes(folder, record),
        base_bytes=2 * record.parameters,
        measured=Measured.from_dict(json.loads(measured.read_text()))
        if measured.is_file()
        else None,
        compared=_compared(compared),
    )


def write(path: Path, text: str, scratch: Path | None = None) -> None:
    """Write a file so that it is either the old one or the new one."""
    beside = (scratch or path.parent) / f".{path.name}.{os.getpid()}"
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


def _bits(folder: Folder, record: RunRecord) -> dict[str, Sequence[int]]:
    """Read the bits of every block of channels from the weight files."""
    found = {}
    for layer in record.layers:
        for name in (f"{layer.name}.orders", f"{layer.name}.bits"):
            if name in folder.tensor_names:
                found[layer.name] = folder.tensor(name).tolist()
    return found


def _file_bytes(folder: Folder, record: RunRecord) -> dict[str, float]:
    """Part the weight files into codes, scales, packed embedding and head, and the rest."""
    codes = stored = outside = 0.0
    for layer in record.layers:
        if layer.kind != "simulated":
            weights = layer.shape[0] * layer.shape[1] / 8
            codes += weights * layer.code_bits
            stored += weights * layer.stored_bits
    for layer in record.outside:
        outside += layer.shape[0] * layer.shape[1] * layer.stored_bits / 8
    other = folder.weight_bytes - stored - outside
    return {"codes": codes, "scales": stored - codes, "outside": outside, "other": other}


def _compared(path: Path) -> list[ComparisonRecord]:
    if not path.is_file():
        return []
    lines = path.read_text().splitlines()
    return [ComparisonRecord.from_dict(json.loads(line)) for line in lines]
