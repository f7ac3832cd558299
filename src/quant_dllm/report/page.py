"""One self-contained HTML page about a checkpoint: nothing in it asks a network for anything."""

import json
import shlex
from functools import cache
from importlib.resources import files
from pathlib import PurePath
from typing import Any

from quant_dllm.errors import QuantDLLMError
from quant_dllm.recipe import Recipe
from quant_dllm.record import BASE, ComparisonRecord, RunRecord
from quant_dllm.report import figures
from quant_dllm.report.figures import Share
from quant_dllm.report.findings import Findings
from quant_dllm.report.table import Row, rows

TEMPLATES = "templates"


def page(found: Findings) -> str:
    """Write the page."""
    record = found.record
    return template("page.html.j2").render(
        found=found, record=record, title=title(record), recipe=record.recipe,
        base_name=base_name(record), facts=_facts(found), pictures=_pictures(found),
        compared=_table(found), choices=_choices(record.recipe), command=command(record),
        outside=outside(record),
        samples=[_playable(sample) for sample in found.measured.samples] if found.measured else [],
        style=asset("page.css"), script=asset("player.js"),
    )  # fmt: skip


def title(record: RunRecord) -> str:
    """Say what the checkpoint is in a few words."""
    return f"{base_name(record)} at {record.bits.code:.2g} bits"


def base_name(record: RunRecord) -> str:
    """Name the 16-bit model as its authors do: no path of the machine that it was read on."""
    name = record.base_model
    return PurePath(name).name if PurePath(name).is_absolute() or name[:1] in ".~" else name


def outside(record: RunRecord) -> str:
    """Say what became of embedding and head."""
    if not record.outside:
        return "embedding and head stay at 16 bits"
    weights = [layer.shape[0] * layer.shape[1] for layer in record.outside]
    layers = zip(weights, record.outside, strict=True)
    bits = sum(count * layer.stored_bits for count, layer in layers) / sum(weights)
    what = "embedding and head take" if len(weights) > 1 else "the embedding takes"
    return f"{what} {bits:.2f} bits a weight"


def command(record: RunRecord) -> str:
    """Write the command that makes this checkpoint again, changed fields of the recipe too."""
    words = ["quant-dllm", "quantize", base_name(record), "-o", "OUT", "-r", record.recipe["name"]]
    for setting in _changes(record.recipe):
        words += ["--set", setting]
    return shlex.join(words + (["--seed", str(record.seed)] if record.seed else []))


def _changes(recipe: dict[str, Any]) -> list[str]:
    """List the fields in which a recipe differs from the preset of its name."""
    try:
        preset = json.loads(json.dumps(Recipe.load(recipe["name"]).to_dict()))
    except QuantDLLMError:  # somebody's own file
        return []
    found = []
    for part, fields in recipe.items():
        if not isinstance(fields, dict):
            continue
        theirs = preset.get(part, {})
        if fields.get("name") != theirs.get("name"):
            found.append(f"{part}={fields.get('name')}")
            theirs = {}
        found += [f"{part}.{key}={'null' if value is None else value}"
                  for key, value in fields.items()
                  if key != "name" and theirs.get(key) != value]  # fmt: skip
    return found


def size(count: int | float | None) -> str:
    """Format bytes."""
    if count is None:
        return "not known"
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return (
                f"{count / factor:.3g} {unit}" if count < 1e12 else f"{count / factor:.0f} {unit}"
            )
    return f"{count:.0f} B"


def duration(seconds: int | float) -> str:
    """Format a time."""
    if seconds < 120:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"


@cache
def asset(name: str) -> str:
    """Read a file that goes into pages."""
    return (files("quant_dllm.report") / TEMPLATES / name).read_text()


def template(name: str) -> Any:
    """Prepare a template; what is put into a page is escaped."""
    from jinja2 import DictLoader, Environment, StrictUndefined, select_autoescape

    escaped = select_autoescape(enabled_extensions=("html.j2",), default=False)
    environment = Environment(
        loader=DictLoader({name: asset(name)}), autoescape=escaped, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"size": size, "duration": duration}
    return environment.get_template(name)


def embedded(value: Any) -> str:
    """Write JSON that may stand inside a script element."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def _facts(found: Findings) -> list[tuple[str, str, str]]:
    """List the numbers at the top: name, value, and what it means."""
    record, bits = found.record, found.record.bits
    total = sum(found.file_bytes.values())
    facts = [
        ("code bits", f"{bits.code:.3f}", "a quantized weight, codes alone"),
        ("stored bits", f"{bits.stored:.3f}", "a quantized weight, with every scale"),
        ("file bits", f"{bits.file:.3f}", "a weight of the whole file, embedding and head too"),
        (
            "weight files",
            size(total),
            f"{total / found.base_bytes:.1%} of {size(found.base_bytes)}",
        ),
        ("time", duration(record.seconds), f"peak memory {size(record.peak_memory)}"),
    ]
    if found.measured and found.measured.evaluation.get("kl") is not None:
        e = found.measured.evaluation
        facts.append(
            ("KL to 16 bits", f"{e['kl']:.3f}",
             f"± {e['kl_stderr']:.3f} nats a masked token; the same first choice in "
             f"{e['top1_agreement']:.0%}")
        )  # fmt: skip
    return facts


def _pictures(found: Findings) -> dict[str, str | None]:
    layers = found.record.layers
    packed = bool(found.record.outside)
    kinds = {
        "codes": "codes", "scales": "scales", "outside": "embedding, head, packed",
        "other": "norms, 16 bits" if packed else "embedding, head, norms, 16 bits",
    }  # fmt: skip
    base = [Share("16 bits", found.base_bytes, "other")]
    ours = [Share(kinds[k], found.file_bytes[k], k) for k in kinds if found.file_bytes.get(k)]
    pictures = {
        "sizes": figures.sizes([(BASE, base), (f"{found.record.bits.code:.2g}-bit", ours)]),
        "errors": figures.layer_errors(layers),
        "bits": figures.bits_map(layers, found.bits),
        "blocks": None,
        "tuning": None,
        "ratio": None,
        "pareto": None,
    }
    record = found.record
    if record.block_tuning:
        pictures["blocks"] = figures.block_errors(record.block_tuning)
    if record.tuning:
        steps = record.recipe["tuning"]["steps"]
        pictures["tuning"] = figures.tuning_curve(record.tuning, steps)
    e = found.measured.evaluation if found.measured else {}
    if e.get("kl_by_mask_ratio"):
        pictures["ratio"] = figures.by_mask_ratio(e["kl_by_mask_ratio"], e["top1_by_mask_ratio"])
    shown = _rows(found)
    if shown:
        pictures["pareto"] = figures.pareto(shown, found.record.recipe["name"])
    return pictures


def _rows(found: Findings) -> list[Row]:
    shown = [row for row in rows([*found.compared, *_itself(found)]) if row.name != BASE]
    return shown if found.compared else []


def _itself(found: Findings) -> list[ComparisonRecord]:
    """Put this checkpoint among the others, where it was measured on the same text and masks."""
    recipe, others = found.record.recipe, [run.evaluation for run in found.compared]
    if not others or found.measured is None or recipe["name"] in map(_name, found.compared):
        return []
    e = found.measured.evaluation
    same = ("text", "sequences", "length", "draws", "seed")
    if e.get("kl") is None or any(e[key] != others[0].get(key) for key in same):
        return []
    return [
        ComparisonRecord(
            identity="", model=found.record.base_model, recipe=recipe, seed=found.record.seed,
            evaluation=e, layer_errors={}, bytes_on_disk=0, seconds=found.record.seconds,
            peak_memory=found.record.peak_memory, machine="",
        )
    ]  # fmt: skip


def _name(run: ComparisonRecord) -> str:
    return run.name


def _table(found: Findings) -> list[dict[str, Any]]:
    """Write the comparison as a table, the least divergence first."""
    table = [
        {"name": row.name, "stored": f"{row.stored_bits:.3f}", "file": f"{row.file_bits:.2f}",
         "kl": row.kl.text(4), "excess": row.excess.text(4), "runs": len(row.runs),
         "ours": row.name == found.record.recipe["name"]}
        for row in sorted(_rows(found), key=lambda row: row.kl.mean)
    ]  # fmt: skip
    return table


def _choices(recipe: dict[str, Any]) -> list[tuple[str, str, str]]:
    """List the parts of a recipe: part, name, and every field."""
    parts = [(part, value) for part, value in recipe.items() if isinstance(value, dict)]
    return [
        (part, value.get("name", "–"),
         ", ".join(f"{k} {v}" for k, v in value.items() if k != "name" and v is not None))
        for part, value in parts
    ]  # fmt: skip


def _playable(sample: Any) -> dict[str, Any]:
    answers = [
        {"name": a.name, "steps": a.steps, "seconds": a.seconds, "last": a.last(),
         "data": embedded({"length": a.length, "steps": a.steps, "events": a.events})}
        for a in sample.answers
    ]  # fmt: skip
    return {"prompt": sample.prompt, "answers": answers}
