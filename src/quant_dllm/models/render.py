"""Write a proposed family as the file that a contributor would."""

from typing import Any

from quant_dllm.models.discover import Proposal

FILE = '''"""{title}: say here what it is and who published it."""

from typing import Any

from quant_dllm.models.config import BackboneConfig
from quant_dllm.models.family import ModelFamily


def config(raw: dict[str, Any]) -> BackboneConfig:
    """Read upstream's ``config.json``."""
    return BackboneConfig(
{fields}
    )


FAMILY = ModelFamily(
    name="{name}",
    models="{title}",
    architectures=({architectures}),
    model_types=({model_type!r},),
    config=config,
    mask_tokens=({masks}),  # {masks_note}
    shift=False,  # random weights do not tell: True if row i of the logits predicts token i + 1
    names={{
{names}
    }},
)
'''


def family_file(raw: dict[str, Any], proposal: Proposal, tokens: list[str]) -> str:
    """Return the source of a file for ``models/``.

    Args:
        raw: ``config.json``.
        proposal: What was seen.
        tokens: Tokens of the tokenizer that look like a mask.
    """
    fields = {field: f'raw["{key}"]' for field, key in proposal.keys.items()}
    rope = raw.get("rope_parameters")
    fields["rope_theta"] = 'raw["rope_parameters"]["rope_theta"]' if rope else 'raw["rope_theta"]'
    fields |= {field: repr(value) for field, value in proposal.changes.items()}
    if proposal.attention_block:
        fields["attention_block"] = f"{proposal.attention_block},  # seen; 1 is causal"
    title = (raw.get("architectures") or [raw.get("model_type", "unknown")])[0]
    return FILE.format(
        title=title,
        name=str(raw.get("model_type", "unknown")).lower().replace("_", "-"),
        fields="\n".join(
            f"        {field}={value}" + ("" if "#" in value else ",")
            for field, value in fields.items()
        ),
        architectures=", ".join(map(repr, raw.get("architectures") or ())) + ",",
        model_type=raw.get("model_type"),
        masks="".join(f"{token!r}, " for token in tokens).strip(),
        masks_note="found in the tokenizer" if tokens else "none was found: ask its authors",
        names="\n".join(f'        "{slot}": "{path}",' for slot, path in proposal.names.items()),
    )
