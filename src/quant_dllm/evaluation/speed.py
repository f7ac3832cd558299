"""How long a call takes, dense and packed, and what the weights take in memory."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from quant_dllm.errors import RequestError, hint
from quant_dllm.linear import QuantLinear
from quant_dllm.models.backbone import Backbone, BackboneConfig
from quant_dllm.models.load import load, usable_device
from quant_dllm.track import Track, silent
from quant_dllm.weights.random import random_weight

SHAPES = {
    "llada-8b": BackboneConfig(
        width=4096, blocks=32, heads=32, kv_heads=32, mlp_width=12288, vocab=126464,
        context=4096, rope_theta=5e5, norm_eps=1e-5,
    )
}  # fmt: skip
"""Published models whose speed can be measured with random weights."""
BLOCK = 128
WARM_UP = 2


@dataclass(frozen=True)
class Timing:
    """Calls of one network on canvases of one length.

    Attributes:
        network: ``dense`` or ``packed``.
        length: Tokens of the canvas.
        seconds: Of a whole call, median: embedding, blocks, norm and head.
        spread: Interquartile range of it, seconds.
        head: Seconds of the norm and the head alone, median.
        tokens_per_second: Positions scored.
    """

    network: str
    length: int
    seconds: float
    spread: float
    head: float
    tokens_per_second: float


@dataclass(frozen=True)
class Speed:
    """What was measured.

    Attributes:
        weight_bytes: Resident bytes of the layers that are packed, by network.
        model_bytes: The same with embedding, norms and head.
        timings: By length, dense before packed.
    """

    model: str
    dtype: str
    device: str
    threads: int
    runs: int
    weight_bytes: dict[str, int]
    model_bytes: dict[str, int]
    timings: list[Timing]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON's types."""
        return asdict(self)


@torch.inference_mode()
def measure(
    model: str | None = None,
    *,
    shape: str | None = None,
    layers: int | None = None,
    order: int = 2,
    lengths: Sequence[int] = (32, 128, 512),
    runs: int = 5,
    dtype: torch.dtype = torch.bfloat16,
    device: str | torch.device = "cpu",
    track: Track = silent,
) -> Speed:
    """Time a model with dense layers and with packed ones, calls alternating.

    Args:
        model: A folder, ``"tiny"`` or a Hugging Face id. A packed one is compared with its own
            dequantized weights, a 16-bit one with random planes in their place.
        shape: Or one of `SHAPES`, with random weights.
        layers: Blocks of it, if not all.
        order: Planes of random weights.
        lengths: Canvases, in tokens.
        runs: Timed calls, after two that are not.
        dtype: What both compute in.
        device: Where.
        track: Watches the progress.

    Raises:
        RequestError: No model and no shape, or both; an unknown shape; counts below 1.
    """
    _check(model, shape, layers, runs, lengths)
    target = usable_device(device)
    if shape:
        networks = random_pair(SHAPES[shape], layers, order, dtype, target)
    else:
        networks = loaded_pair(str(model), order, dtype, target)
    jobs = [(length, run) for length in lengths for run in range(WARM_UP + runs)]
    seconds: dict[tuple[int, str], list[tuple[float, float]]] = {}
    for length, run in track(jobs, f"timing {model or shape}", len(jobs)):
        ids = torch.randint(networks["packed"].config.vocab, (1, length), device=target)
        for name, network in networks.items():
            taken = _time(network, ids)
            if run >= WARM_UP:
                seconds.setdefault((length, name), []).append(taken)
    return Speed(
        model=str(model or shape),
        dtype=str(dtype).removeprefix("torch."),
        device=str(target),
        threads=torch.get_num_threads(),
        runs=runs,
        weight_bytes={name: _linear_bytes(n) for name, n in networks.items()},
        model_bytes={name: _bytes(n) for name, n in networks.items()},
        timings=[_timing(name, length, taken) for (length, name), taken in seconds.items()],
    )


def _check(
    model: str | None, shape: str | None, layers: int | None, runs: int, lengths: Sequence[int]
) -> None:
    if (model is None) == (shape is None):
        raise RequestError("A model or a --shape is wanted, one of the two.")
    if shape is not None and shape not in SHAPES:
        raise RequestError(
            f"Unknown shape {shape!r}.{hint(shape, SHAPES)} Known: {', '.join(SHAPES)}."
        )
    if layers is not None and (model or not 1 <= layers <= SHAPES[str(shape)].blocks):
        raise RequestError(f"{layers} layers cannot be had: they are counted with --shape, from 1.")
    if runs < 2 or min(lengths, default=0) < 1:
        raise RequestError("At least 2 runs and canvases of at least 1 token are wanted.")


def random_pair(
    config: BackboneConfig, layers: int | None, order: int, dtype: torch.dtype, device: torch.device
) -> dict[str, Backbone]:
    """Make the two networks of a shape; what is outside their blocks is shared."""
    config = replace(config, blocks=layers or config.blocks)
    with torch.device("meta"):
        dense = Backbone(config)
    for name, tensor in dense.named_parameters():
        module, _, leaf = name.rpartition(".")
        values = nn.Parameter(_noise(tensor, dtype, device), requires_grad=False)
        setattr(dense.get_submodule(module), leaf, values)
    return {"dense": dense, "packed": _with_layers(dense, lambda m: _random_layer(m, order))}


def loaded_pair(
    model: str, order: int, dtype: torch.dtype, device: torch.device
) -> dict[str, Backbone]:
    """Load a model and make the other of the two networks from it."""
    loaded = load(model, device=device, dtype=dtype).backbone
    if not isinstance(loaded, Backbone):
        raise RequestError(
            f"{model} is a network of transformers, wrapped; one of our own is wanted."
        )
    if any(isinstance(layer, QuantLinear) for layer in loaded.blocks.modules()):
        return {
            "dense": _with_layers(loaded, lambda m: m.unpacked(dtype), QuantLinear),
            "packed": loaded,
        }
    return {"dense": loaded, "packed": _with_layers(loaded, lambda m: _random_layer(m, order))}


def _with_layers(
    network: Backbone, make: Callable[[Any], nn.Module], kind: type[nn.Module] = nn.Linear
) -> Backbone:
    """Copy a network, sharing its tensors, with other layers in its blocks."""
    with torch.device("meta"):
        copy = Backbone(network.config)
    for name, module in list(network.named_modules()):
        if name.startswith("blocks.") and isinstance(module, kind):
            copy.set_submodule(name, make(module))
        elif not list(module.children()):
            copy.set_submodule(name, module)
    return copy


def _random_layer(layer: nn.Linear, order: int) -> QuantLinear:
    blocks = -(-layer.in_features // BLOCK)
    weight = random_weight(layer.out_features, layer.in_features, BLOCK, [order] * blocks)
    bias = None if layer.bias is None else layer.bias.detach()
    packed = QuantLinear.of(weight, bias).to(layer.weight.device)
    packed.prepare(layer.weight[:0])
    return packed


def _noise(like: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Fill a tensor with a million random numbers, again and again: drawing them all takes long."""
    some = (0.02 * torch.randn(min(like.numel(), 1 << 20), device=device)).to(dtype)
    return some.repeat(-(-like.numel() // some.numel()))[: like.numel()].view(like.shape)


def _time(network: Backbone, ids: Tensor) -> tuple[float, float]:
    """Return seconds of a call, and of its head."""
    marks = list(_marks(network, ids))
    blocks, head = (b - a for a, b in pairwise(marks))
    return blocks + head, head


def _marks(network: Backbone, ids: Tensor) -> Iterator[float]:
    yield _now(ids.device)
    x = network.hidden(ids)
    yield _now(ids.device)
    network.project(x)
    yield _now(ids.device)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _timing(network: str, length: int, taken: list[tuple[float, float]]) -> Timing:
    calls = [call for call, _ in taken]
    low, middle, high = statistics.quantiles(calls, n=4, method="inclusive")
    head = statistics.median(head for _, head in taken)
    return Timing(network, length, middle, high - low, head, length / middle)


def _linear_bytes(network: Backbone) -> int:
    """Count what holds the weights of the blocks' linear layers."""
    return sum(
        m.weight_bytes if isinstance(m, QuantLinear) else m.weight.nbytes
        for m in network.blocks.modules()
        if isinstance(m, QuantLinear | nn.Linear)
    )


def _bytes(network: Backbone) -> int:
    outside = sum(
        p.nbytes for name, p in network.named_parameters()
        if not isinstance(network.get_submodule(name.rpartition(".")[0]), QuantLinear | nn.Linear)
        or not name.startswith("blocks.")
    )  # fmt: skip
    return outside + _linear_bytes(network)
