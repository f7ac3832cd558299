"""``quant-dllm doctor``."""

from typing import Annotated, Any

import typer

from quant_dllm.cli.options import AsJson, AttentionBlock, Device, MaskTokenId


def doctor(
    model: Annotated[
        str | None, typer.Argument(help="A model; without one, only the machine.")
    ] = None,
    device: Device = "cpu",
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that lies in the folder.")
    ] = False,
    mask_token_id: MaskTokenId = None,
    attention_block: AttentionBlock = None,
    as_json: AsJson = False,
) -> None:
    """Say what can be used here, how a model is understood and which kernels it gets.

    A family is proposed for a model that nobody described.

    Example: quant-dllm doctor tiny
    """
    from quant_dllm.checkpoint.folder import Folder
    from quant_dllm.models.source import is_known, locate

    folder = Folder(locate(model)) if model else None
    if folder is not None and not is_known(folder.config):
        _propose(folder, trust_remote_code, as_json)
        return
    _explain(model, device, mask_token_id, attention_block, as_json)


def _explain(
    model: str | None,
    device: str,
    mask_token_id: int | None,
    attention_block: int | None,
    as_json: bool,
) -> None:
    from quant_dllm.cli.features import devices, features, versions
    from quant_dllm.cli.show import print_facts, print_json, print_table
    from quant_dllm.kernels.explain import machine

    known = _understood(model, mask_token_id, attention_block) if model else {}
    facts, layers = machine(), _layers(model, device) if model else []
    if as_json:
        print_json(
            {"machine": facts, "model": known, "layers": layers, "versions": versions(),
             "devices": devices(), "features": features()}
        )  # fmt: skip
        return
    facts = versions() | devices() | facts | features()
    if model and not layers:
        facts[model] = "is not quantized: torch multiplies all of its layers"
    print_facts(known | facts)
    if layers:
        rows = [
            (layer["name"], layer["kind"], "×".join(map(str, layer["shape"])), layer["kernel"],
             "; ".join(f"{name}: {reason}" for name, reason in layer["refused"].items()) or "-")
            for layer in layers
        ]  # fmt: skip
        print_table("", ("layer", "kind", "shape", "kernel", "why no faster one"), rows)


def _understood(
    model: str, mask_token_id: int | None, attention_block: int | None
) -> dict[str, str]:
    """Say what a model is taken for, after holding its tensors against that."""
    from quant_dllm.models.load import empty_backbone
    from quant_dllm.models.mask_token import resolve_mask_token
    from quant_dllm.models.model import load_tokenizer
    from quant_dllm.models.source import open_model

    source = open_model(model, attention_block)
    source.check(empty_backbone(source))
    tokenizer = load_tokenizer(source)
    family, block = source.family, source.config.attention_block
    mask = resolve_mask_token(source, mask_token_id, tokenizer)
    return {
        "family": f"{family.name}: {family.models}",
        "tensors": f"all {len(source.folder.tensor_names)} are known, none is missing",
        "attention": f"block-causal, {block} tokens" if block else "full",
        "logits predict": "the next position (shifted)" if family.shift else "their own position",
        "mask token": f"{mask} ({_spelled(tokenizer, mask)})",
        "sampler": _sampler(family.sampling),
        "likelihood": f"{family.scoring.draws} draws by {family.scoring.hiding}",
    }


def _spelled(tokenizer: Any, token: int) -> str:
    return "no tokenizer" if tokenizer is None else str(tokenizer.convert_ids_to_tokens(token))


def _sampler(sampling: Any) -> str:
    """Name the settings that are not the plainest."""
    from dataclasses import fields

    told = {f.name: getattr(sampling, f.name) for f in fields(sampling)}
    return ", ".join(f"{k} {v}" for k, v in told.items() if v not in (None, 0.0, 1.0, "none"))


def _layers(model: str, device: str) -> list[dict]:
    """Explain layer after layer, one weight in memory at a time."""
    import torch

    from quant_dllm.kernels.explain import explain
    from quant_dllm.models.load import default_dtype, packed_weight, usable_device
    from quant_dllm.models.source import open_model

    source, target = open_model(model), usable_device(device)
    found = []
    for slot in source.packed_layers:
        weight = packed_weight(source, slot, target)
        x = torch.empty(1, weight.in_features, dtype=default_dtype(target), device=target)
        choice = explain(x, weight)
        found.append(
            {
                "name": source.upstream(slot),
                "kind": weight.kind,
                "shape": [weight.out_features, weight.in_features],
                "kernel": choice.kernel,
                "refused": choice.refused,
            }
        )
    return found


def _propose(folder: Any, trust: bool, as_json: bool) -> None:
    from quant_dllm.cli.show import print_json
    from quant_dllm.models.discover import discover
    from quant_dllm.models.render import family_file
    from quant_dllm.models.upstream import random_upstream

    model, logits = random_upstream(folder.path, trust)
    proposal = discover(model, logits, folder.config)
    text = family_file(folder.config, proposal, _mask_tokens(folder.path))
    if as_json:
        facts = {"names": proposal.names, "attention_block": proposal.attention_block,
                 "difference": proposal.difference, "file": text}  # fmt: skip
        print_json(facts)
        return
    print(text)
    verdict = "they are one network" if proposal.difference <= 1e-4 else "they are two networks"
    print(
        f"# On random weights its logits and ours differ by {proposal.difference:.1e}: {verdict}."
    )


def _mask_tokens(path: Any) -> list[str]:
    """List tokens that look like a mask."""
    import json

    file = path / "tokenizer.json"
    if not file.is_file():
        return []
    added = json.loads(file.read_text()).get("added_tokens", [])
    return [token["content"] for token in added if "mask" in token["content"].lower()]
