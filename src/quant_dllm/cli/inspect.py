"""``quant-dllm inspect``."""

from quant_dllm.cli.options import AsJson, Model


def inspect(model: Model, as_json: AsJson = False) -> None:
    """Say what a model folder holds, without loading it.

    Example: quant-dllm inspect tiny-2bit
    """
    from quant_dllm.cli.show import print_facts, print_json, print_table, size
    from quant_dllm.models.source import open_model

    source = open_model(model)
    folder, packed = source.folder, bool(source.packed_layers)
    facts = {
        "path": str(folder.path),
        "family": source.family.name,
        "blocks": source.config.blocks,
        "width": source.config.width,
        "bytes": folder.total_bytes,
        "weight_bytes": folder.weight_bytes,
        "quantized": packed,
    }
    if packed:
        manifest = folder.manifest
        facts |= {key: value for key, value in manifest.items() if key != "layers"}
        facts["layers"] = manifest["layers"]
    if as_json:
        print_json(facts)
        return
    shown = {
        "folder": str(folder.path),
        "family": f"{source.family.name}, {source.config.blocks} blocks of width "
        f"{source.config.width}, {source.config.vocab} tokens",
        "size on disk": f"{size(folder.total_bytes)} ({folder.total_bytes} bytes), "
        f"weights {size(folder.weight_bytes)}",
    }
    if not packed:
        print_facts(shown | {"quantized": "no"})
        return
    bits = facts["bits"]
    print_facts(
        shown
        | {
            "made from": f"{facts['base_model']} ({facts['base_fingerprint']})",
            "recipe": f"{facts['recipe']['name']}, seed {facts['seed']}",
            "bits a weight": f"{bits['code']:.3f} codes, {bits['stored']:.3f} with scales, "
            f"{bits['file']:.3f} of the file",
            "packed": _packed(facts["layers"]),
            "embedding and head": _outside(facts.get("outside")),
            "tuned": _tuned(facts.get("block_tuning"), facts.get("tuning")),
            "quantized in": f"{facts['seconds']:.1f} s, peak memory {size(facts['peak_memory'])}",
        }
    )
    layers = (*facts["layers"], *facts.get("outside", ()))
    columns, rows = (
        ("layer", "kind", "shape", "codes", "stored", "orders", "error"),
        map(_row, layers),
    )
    if any(layer.get("increase") is not None for layer in layers):
        columns += ("expected KL",)
        rows = ((*row, _increase(layer)) for row, layer in zip(rows, layers, strict=True))
    print_table("", columns, rows)


def _packed(layers: list[dict]) -> str:
    """Say whether the file holds what the bits count."""
    simulated = sum(layer["kind"] == "simulated" for layer in layers)
    if not simulated:
        return "yes"
    return (
        f"no: {simulated} of {len(layers)} layers are simulated, float16 values on disk; "
        "codes and scales are what the method would store"
    )


def _outside(layers: list[dict] | None) -> str:
    """Say what became of the embedding and the head."""
    if not layers:
        return "as the model has them"
    found = (
        f"{x['name']} {x['code_bits']:.3g} bits, {x['stored_bits']:.3f} stored" for x in layers
    )
    return "; ".join(found)


def _tuned(blocks: list[list[float]] | None, whole: dict | None) -> str:
    """Say what was learned after rounding, and what it brought."""
    from quant_dllm.cli.show import before_and_after

    told = []
    if blocks:
        before, after = before_and_after(blocks)
        told.append(f"block by block, error {before:.2e}, then {after:.2e}")
    if whole:
        told.append(f"end to end, KL {whole['curve'][0]:.4f}, then {min(whole['curve']):.4f}")
    return "; ".join(told) or "no"


def _row(layer: dict) -> tuple[str, ...]:
    orders = " ".join(f"{order}×{count}" for order, count in sorted(layer["orders"].items()))
    return (
        layer["name"],
        _kind(layer),
        "×".join(map(str, layer["shape"])),
        f"{layer['code_bits']:.2f}",
        f"{layer['stored_bits']:.3f}",
        orders or "-",
        "-" if layer["error"] is None else f"{layer['error']:.1e}",
    )


def _increase(layer: dict) -> str:
    """Say what rounding was expected to cost, nats, where a budget was spent by that."""
    increase = layer.get("increase")
    return "-" if increase is None else f"{increase:.1e}"


def _kind(layer: dict) -> str:
    bits = layer["layout"].get("scale_bits")
    return f"{layer['kind']}, scales of {bits} bits" if bits else layer["kind"]
