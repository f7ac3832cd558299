"""Scale a stage's inputs, and undo it in what produces them, so that the network stays the same.

A stage sees W x = (W S)(S⁻¹ x). The first factor is what is quantized; the second is what the norm
or the layer in front already gives, once its output channels are divided by s.
"""

from jaxtyping import Float
from torch import Tensor, nn

from quant_dllm.models.backbone import STAGES, Block
from quant_dllm.weights.base import QuantizedWeight

PRODUCERS = ("attention_norm", "attention.v", "mlp_norm", "mlp.up")
"""What stands in front of each of the `STAGES` and may carry the inverse of its input scale.

Between values and output projection there is only a weighted mean, between up and down only a
product: a channel's scale passes through both.
"""


def can_fold(block: Block, stage: int) -> bool:
    """Tell whether each input channel of the stage is one output channel of its producer.

    With grouped heads one value channel feeds several inputs of the output projection.
    """
    producer = block.get_submodule(PRODUCERS[stage])
    outputs = len(producer.weight)  # type: ignore[arg-type]
    first = block.get_submodule(STAGES[stage][0])
    return outputs == first.weight.shape[1]  # type: ignore[union-attr]


def fold(
    block: Block, stage: int, s: Float[Tensor, " in"], packed: dict[str, QuantizedWeight]
) -> None:
    """Divide the output channels of the stage's producer by ``s``, packed or not."""
    name = PRODUCERS[stage]
    weight: nn.Parameter = block.get_submodule(name).weight  # type: ignore[assignment]
    if name in packed:
        packed[name] = packed[name].scale_rows(1 / s)
        weight.data = packed[name].dequantize().to(weight.dtype)
    else:
        column = s.view(-1, *[1] * (weight.ndim - 1))
        weight.data = (weight.float() / column).to(weight.dtype)
