"""Scale a group's inputs, and undo it in what produces them, so that the network stays the same.

A group sees W x = (W S)(S⁻¹ x). The first factor is what is quantized; the second is what the norm
or the layer in front already gives, once its output channels are divided by s.
"""

from jaxtyping import Float
from torch import Tensor

from quant_dllm.distributed import broadcast_tensors, rank
from quant_dllm.models.network import NetworkBlock
from quant_dllm.models.stage import Group
from quant_dllm.pipeline.block import BlockWork
from quant_dllm.quantizers.base import ScalesInputs
from quant_dllm.statistics.layer import LayerStatistics
from quant_dllm.weights.base import QuantizedWeight


def scale_inputs(
    work: BlockWork, group: Group, stats: LayerStatistics, owner: int
) -> LayerStatistics:
    """Move part of the weights' scale into what produces the inputs, if the method wants it.

    Args:
        work: The block; the group's weights change, and so does their producer.
        group: Layers that share their input.
        stats: Of that input.
        owner: The process that has them.

    Returns:
        The statistics of the scaled input.
    """
    job, block = work.job, work.block
    if not isinstance(job.quantizer, ScalesInputs) or not can_fold(block, group):
        return stats
    s = work.saved_scale(group)
    if s is None:
        found = None
        if rank() == owner:
            shared = [work.weights[name] for name in group.layers]
            bits, size = int(job.precision.bits), job.precision.block_size
            found = {"s": job.quantizer.input_scale(shared, stats, bits, size)}
        s = broadcast_tensors(found, owner, job.device)["s"]
    for name in group.layers:
        work.weights[name] = work.weights[name] * s
        work.scales[name] = s
    fold(block, group, s, work.packed)
    return stats.scaled(1 / s) if len(stats.moment) else stats


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
