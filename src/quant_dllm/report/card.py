"""The model card of a checkpoint, in Markdown, with the fields that the Hub reads."""

from typing import Any

from quant_dllm.report.findings import Findings
from quant_dllm.report.page import base_name, command, size, template, title


def card(found: Findings) -> str:
    """Write the card."""
    record = found.record
    return template("card.md.j2").render(
        found=found, record=record, bits=record.bits, title=title(record), recipe=record.recipe,
        base=base_name(record), hub=is_hub_id(base_name(record)), command=command(record),
        total=size(sum(found.file_bytes.values())), scores=_scores(found),
        simulated=sum(layer.kind == "simulated" for layer in record.layers),
    )  # fmt: skip


def is_hub_id(name: str) -> bool:
    """Tell whether a name can be an id of the Hugging Face hub."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~"))


def _scores(found: Findings) -> list[tuple[str, str]]:
    """List what was measured."""
    if found.measured is None:
        return []
    e: dict[str, Any] = found.measured.evaluation
    scores = [("bound (NELBO), nats a token", f"{e['nelbo']:.4f} ± {e['nelbo_stderr']:.4f}")]
    if e.get("kl") is not None:
        scores += [
            ("over the 16-bit model", f"{e['nelbo_excess']:+.4f} ± {e['nelbo_excess_stderr']:.4f}"),
            (
                "KL to the 16-bit model, nats a masked token",
                f"{e['kl']:.4f} ± {e['kl_stderr']:.4f}",
            ),
            ("same first choice", f"{e['top1_agreement']:.1%}"),
        ]
    return scores
