"""Propose a family for a model that is not known, from one forward pass on random weights."""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from quant_dllm.errors import ModelError
from quant_dllm.models.backbone import Backbone
from quant_dllm.models.config import BackboneConfig
from quant_dllm.models.watch import Call, attention_block, watch

LENGTH = 64  # tokens that are looked at
KEYS = {
    "width": ("hidden_size", "d_model", "n_embd", "dim"),
    "blocks": ("num_hidden_layers", "n_layers", "n_layer", "num_layers"),
    "heads": ("num_attention_heads", "n_heads", "n_head"),
    "kv_heads": ("num_key_value_heads", "n_kv_heads", "num_attention_heads", "n_heads"),
    "mlp_width": ("intermediate_size", "mlp_hidden_size", "ffn_dim", "hidden_dim"),
    "vocab": ("vocab_size", "embedding_size"),
    "context": ("max_position_embeddings", "max_sequence_length", "n_positions"),
    "norm_eps": ("rms_norm_eps", "layer_norm_eps", "norm_eps"),
    "head_width": ("head_dim",),
}
"""Keys of ``config.json`` that say the same."""


@dataclass(frozen=True)
class Proposal:
    """What the forward pass looks like.

    Attributes:
        names: Slots of the network, upstream's paths.
        keys: Fields of `BackboneConfig` → keys of ``config.json``.
        changes: Fields of `BackboneConfig` that were seen and are in no key.
        attention_block: As it was seen, see `watch.attention_block`.
        difference: Largest difference of our network's logits from the model's.
    """

    names: dict[str, str]
    keys: dict[str, str]
    changes: dict[str, Any]
    attention_block: int | None
    difference: float

    def config(self, raw: dict[str, Any]) -> BackboneConfig:
        """Read a ``config.json`` as the proposed family would."""
        return BackboneConfig(**read(raw, self.keys) | self.changes)


def read(raw: dict[str, Any], keys: dict[str, str]) -> dict[str, Any]:
    """Take the fields of `BackboneConfig` out of a ``config.json``."""
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    theta = rope.get("rope_theta") or raw.get("rope_theta", 10000.0)
    return {field: raw[key] for field, key in keys.items()} | {"rope_theta": theta}


def discover(model: nn.Module, logits: Callable[[Tensor], Tensor], raw: dict[str, Any]) -> Proposal:
    """Watch a model and propose what family it is of.

    Args:
        model: It, of random weights.
        logits: Calls it: token ids [batch, length] in, logits out.
        raw: Its ``config.json``.

    Raises:
        ModelError: It is no decoder of the kind that `Backbone` can be; says what was seen.
    """
    vocab = min(module.num_embeddings for module in model.modules()
                if isinstance(module, nn.Embedding) and module.num_embeddings > 2)  # fmt: skip
    ids = torch.randint(2, vocab, (1, 8), generator=torch.Generator().manual_seed(0))
    calls = watch(model, lambda: logits(ids))
    prefix = _blocks(calls)
    inside = [call for call in calls if call.name.startswith(f"{prefix}.0.")]
    first = calls.index(inside[0])
    names = _outside(calls, prefix, first) | _inside(inside, f"{prefix}.0.", f"{prefix}.*.")
    keys = _keys(raw)
    changes = _changes(model, names, read(raw, keys))
    seen = attention_block(logits, LENGTH, vocab)
    proposal = Proposal(names, keys, changes, seen, 0.0)
    return replace(proposal, difference=_difference(model, logits, proposal, raw, vocab))


def _blocks(calls: list[Call]) -> str:
    """Return the path of the list of blocks: where most linear layers are."""
    found = Counter(
        match[1]
        for call in calls
        if call.is_linear and (match := re.match(r"(.*?)\.\d+\.", call.name))
    )
    if not found:
        raise ModelError("No blocks were called; a decoder with a list of blocks is wanted.")
    return found.most_common(1)[0][0]


def _outside(calls: list[Call], prefix: str, first: int) -> dict[str, str]:
    before = [c for c in calls[:first] if isinstance(c.module, nn.Embedding)]
    after = [c for c in calls[first:] if not c.name.startswith(f"{prefix}.")]
    norms = [c.name for c in after if c.is_norm]
    heads = [c.name for c in after if c.is_linear]
    if len(before) != 1 or len(norms) != 1 or len(heads) > 1:
        raise ModelError(
            f"Outside the blocks there are {len(before)} embeddings in front, and {len(norms)} "
            f"norms and {len(heads)} linear layers behind; one of each is wanted, the head may be "
            "the embedding. Such a model needs a network of its own, as models/modernbert.py."
        )
    return {"embed": before[0].name, "norm": norms[0]} | ({"head": heads[0]} if heads else {})


def _inside(calls: list[Call], own: str, shown: str) -> dict[str, str]:
    """Name the leaves of a block by the order and the inputs of their calls."""
    linears = [call for call in calls if call.is_linear]
    groups = [list(group) for _, group in groupby(linears, key=lambda call: call.input)]
    sizes = [len(group) for group in groups]
    if sizes not in ([3, 1, 2, 1], [1, 1, 2, 1]):
        raise ModelError(
            f"In a block {', '.join(map(str, sizes))} linear layers share their input; 3, 1, 2, 1 "
            "(or 1, 1, 2, 1 where queries, keys and values are one layer) are wanted. "
            f"Seen: {', '.join(call.name for call in linears)}."
        )
    into, (out,), wide, (down,) = groups
    slots = {"attention.out": out, "mlp.down": down}
    if len(into) == 3:
        slots |= {f"attention.{c}": _named(into, i, c) for i, c in enumerate("qkv")}
    else:
        slots["attention.qkv"] = into[0]
    gate = _named(wide, 0, "gate")
    slots |= {"mlp.gate": gate, "mlp.up": next(call for call in wide if call is not gate)}
    norms = [call for call in calls if call.is_norm]
    slots |= {
        "attention_norm": _behind(norms, into[0], "attention"),
        "mlp_norm": _behind(norms, wide[0], "MLP"),
    }
    rest = [call for call in norms if call not in (slots["attention_norm"], slots["mlp_norm"])]
    if len(rest) == 2:
        slots |= {f"attention.{c}_norm": _named(rest, i, c) for i, c in enumerate("qk")}
    elif rest:
        raise ModelError(f"Norms of no known use: {', '.join(call.name for call in rest)}.")
    return {f"blocks.*.{slot}": shown + call.name.removeprefix(own) for slot, call in slots.items()}


def _named(calls: list[Call], index: int, word: str) -> Call:
    """Choose the one whose name says it, else by its place."""
    leaf = [call.name.rpartition(".")[2] for call in calls]
    found = [i for i, name in enumerate(leaf) if name.startswith(word) or f"_{word}" in name]
    return calls[found[0] if len(found) == 1 else index]


def _behind(norms: list[Call], call: Call, what: str) -> Call:
    found = [norm for norm in norms if norm.output == call.input]
    if not found:
        raise ModelError(
            f"No norm stands in front of the {what}: {call.name} is called with something else. "
            "Such a model needs a network of its own, as models/modernbert.py."
        )
    return found[0]


def _keys(raw: dict[str, Any]) -> dict[str, str]:
    found = {}
    for field, keys in KEYS.items():
        key = next((key for key in keys if raw.get(key) is not None), None)
        if key:
            found[field] = key
        elif field != "head_width":
            raise ModelError(f"config.json has none of {', '.join(keys)}, one of which is wanted.")
    return found


def _changes(model: nn.Module, names: dict[str, str], fields: dict[str, Any]) -> dict[str, Any]:
    """Return what the modules show and no key says."""

    def bias(slot: str) -> bool:
        path = names.get(slot, "").replace("*", "0")
        return bool(path) and getattr(model.get_submodule(path), "bias", None) is not None

    fused = "blocks.*.attention.qkv" in names
    found = {
        "tied_head": "head" not in names or _is_tied(model, names),
        "fused_qkv": fused,
        "qkv_bias": bias("blocks.*.attention.qkv" if fused else "blocks.*.attention.q"),
        "out_bias": bias("blocks.*.attention.out"),
        "qk_norm": "blocks.*.attention.q_norm" in names,
    }
    return {field: value for field, value in found.items() if value}


def _is_tied(model: nn.Module, names: dict[str, str]) -> bool:
    head, embed = (model.get_submodule(names[slot]) for slot in ("head", "embed"))
    return head.weight is embed.weight


def _difference(
    model: nn.Module,
    logits: Callable[[Tensor], Tensor],
    proposal: Proposal,
    raw: dict[str, Any],
    vocab: int,
) -> float:
    """Build the proposed network of the model's own weights, and compare."""
    config = proposal.config(raw)
    blocks = len(model.get_submodule(proposal.names["blocks.*.mlp.down"].split(".*")[0]))  # type: ignore[arg-type]
    config = replace(config, blocks=blocks, vocab=vocab, attention_block=proposal.attention_block)
    ours = Backbone(config)
    weights = {}
    for name in ours.state_dict():
        slot, _, leaf = name.rpartition(".")
        number = next((part for part in slot.split(".") if part.isdigit()), "")
        path = proposal.names[re.sub(r"\.\d+\.", ".*.", slot)].replace("*", number)
        weights[name] = model.get_submodule(path).get_parameter(leaf)
    ours.load_state_dict(weights)
    ids = torch.randint(2, vocab, (2, LENGTH), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return (ours(ids) - logits(ids)).abs().max().item()
