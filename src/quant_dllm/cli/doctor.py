"""``quant-dllm doctor``."""

from typing import Annotated

import typer

from quant_dllm.cli.options import AsJson, Device


def doctor(
    model: Annotated[
        str | None, typer.Argument(help="A packed model; without one, only the machine.")
    ] = None,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Say which kernel each packed layer would use, and why not a faster one."""
    from quant_dllm.cli.show import print_facts, print_json, print_table
    from quant_dllm.kernels.explain import machine

    facts, layers = machine(), _layers(model, device) if model else []
    if as_json:
        print_json({"machine": facts, "layers": layers})
        return
    if model and not layers:
        facts[model] = "is not quantized: torch multiplies all of its layers"
    print_facts(facts)
    if layers:
        rows = [
            (layer["name"], layer["kind"], "×".join(map(str, layer["shape"])), layer["kernel"],
             "; ".join(f"{name}: {reason}" for name, reason in layer["refused"].items()) or "-")
            for layer in layers
        ]  # fmt: skip
        print_table("", ("layer", "kind", "shape", "kernel", "why no faster one"), rows)


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
