"""Scale a group's inputs, and undo it in what produces them, so that the network stays the same.

A group sees W x = (W S)(S⁻¹ x). The first factor is what is quantized; the second is what the norm
or the layer in front already gives, once its output channels are divided by s.
"""

from jaxtyping import Float
from torch import Tensor

from quant_dllm.models.network import NetworkBlock
from quant_dllm.models.stage import Group
from quant_dllm.weights.base import QuantizedWeight


def can_fold(block: NetworkBlock, group: Group) -> bool:
    """Tell whether each input channel of the group is one output channel of its producer.

    With grouped heads one value channel feeds several inputs of the output projection.
    """
    if group.producer is None:
        return False
    outputs = len(block.get_submodule(group.producer).weight)  # type: ignore[arg-type]
    first = block.get_submodule(group.layers[0])
    return outputs == first.weight.shape[1]  # type: ignore[union-attr]


def fold(
    block: NetworkBlock, group: Group, s: Float[Tensor, " in"], packed: dict[str, QuantizedWeight]
) -> None:
    """Divide the output channels of the group's producer by ``s``, packed or not."""
    name = group.producer
    assert name is not None, "can_fold said so"
    producer = block.get_submodule(name)
    weight: Tensor = producer.weight  # type: ignore[assignment]
    if name in packed:
        packed[name] = packed[name].scale_rows(1 / s)
        weight.data = packed[name].dequantize().to(weight.dtype)
    else:
        column = s.view(-1, *[1] * (weight.ndim - 1))
        weight.data = (weight.float() / column).to(weight.dtype)
    bias = getattr(producer, "bias", None)
    if bias is not None:
        bias.data = (bias.float() / s).to(bias.dtype)
