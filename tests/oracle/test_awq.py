"""AWQ against its definition: every exponent and every clip tried, by the outputs on the tokens."""

import pytest
import torch

from quant_dllm.errors import RecipeError
from quant_dllm.quantizers.awq import AWQ
from quant_dllm.quantizers.base import ScalesInputs
from quant_dllm.quantizers.rtn import RTN
from quant_dllm.statistics.layer import LayerStatistics
from tests.oracle.by_hand import levels, nearest, rounded_by_rows

BLOCK = 20  # four blocks, the last of 12


@pytest.fixture
def loud():
    """Two weights that share inputs, a few of them loud, and the inputs."""
    dice = torch.Generator().manual_seed(0)
    mixing = torch.randn(72, 72, generator=dice) / 72**0.5 + torch.eye(72)
    volume = torch.randn(72, generator=dice).exp()
    x = torch.randn(400, 72, generator=dice) @ mixing * volume
    return [torch.randn(n, 72, generator=dice) for n in (14, 9)], x


def scale_by_hand(weights, x, bits):
    """Return the scale of least squared output error on the tokens."""
    weights, x = [w.double() for w in weights], x.double()
    tried = []
    for k in range(20):
        s = x.abs().mean(0) ** (k / 20)
        s /= (s.max() * s.min()).sqrt()
        loss = 0.0
        for w in weights:
            groups = (w * s).split(BLOCK, dim=1)
            q = torch.cat([rounded_by_rows(g, bits) for g in groups], dim=1)
            loss += (x @ w.T - (x / s) @ q.T).square().mean().item() * len(w)
        tried.append((loss, k, s))
    return min(tried)[1:]


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_scale_is_the_best_of_all(loud, bits):
    weights, x = loud
    k, expected = scale_by_hand(weights, x, bits)
    ours = AWQ().input_scale(weights, LayerStatistics.gather([x]), bits, BLOCK)
    assert k > 0  # the fixture has something to gain
    assert torch.allclose(ours.double(), expected, rtol=1e-4)  # fp32


def test_the_scale_is_that_of_all_layers_that_share_the_input(loud):
    (first, second), x = loud
    stats = LayerStatistics.gather([x])
    second = second * stats.tokens / stats.magnitude  # large where inputs are quiet: small α
    (alone, _), (together, expected) = (scale_by_hand(w, x, 3) for w in ([first], [first, second]))
    assert alone != together
    ours = AWQ().input_scale([first, second], stats, 3, BLOCK)
    assert torch.allclose(ours.double(), expected, rtol=1e-4)  # fp32


def clipped_by_hand(row, x, bits):
    """Return one row of a group on the clipped levels of least squared output error."""
    largest = max(map(abs, row))
    tried = []
    for step in range(10):
        edge = largest * (1 - step / 20)
        values = nearest(row, levels(max(min(*row, 0), -edge), min(max(*row, 0), edge), bits))
        error = x @ (torch.tensor(row).double() - torch.tensor(values).double())
        tried.append((error.square().sum().item(), values))
    return min(tried)[1]


@pytest.mark.parametrize("bits", [[2, 2, 2, 2], [3, 1, 2, 4]])
def test_each_group_gets_the_best_of_all_clips(loud, bits):
    (weight, _), x = loud
    rows = [
        torch.cat([
            torch.tensor(clipped_by_hand(row[s : s + BLOCK], x[:, s : s + BLOCK].double(), bits[b]))
            for b, s in enumerate(range(0, 72, BLOCK))
        ])
        for row in weight.double().tolist()
    ]  # fmt: skip
    ours = AWQ().quantize(weight, LayerStatistics.gather([x]), torch.tensor(bits), BLOCK)
    assert torch.allclose(ours.dequantize(), torch.stack(rows).float(), atol=1e-5)


def test_scaling_pays_where_some_inputs_are_loud(loud):
    (weight, _), x = loud
    stats, bits = LayerStatistics.gather([x]), torch.full((4,), 3)
    s = AWQ().input_scale([weight], stats, 3, BLOCK)

    def error(values):
        return (x @ (values - weight).T).square().sum()

    plain = RTN(search=False).quantize(weight, stats, bits, BLOCK).dequantize()
    scaled = RTN(search=False).quantize(weight * s, stats, bits, BLOCK).dequantize() / s
    clipped = AWQ().quantize(weight * s, stats.scaled(1 / s), bits, BLOCK).dequantize() / s
    assert error(clipped) < error(scaled) < error(plain)


def test_a_dead_input_gets_a_finite_scale(loud):
    (weight, _), x = loud
    x = x.clone()
    x[:, 7] = 0.0
    for inputs in (x, torch.zeros_like(x)):
        s = AWQ().input_scale([weight], LayerStatistics.gather([inputs]), 2, BLOCK)
        assert torch.isfinite(s).all() and s.min() > 1e-3 and s.max() < 1e3


def test_no_clip_is_round_to_nearest(loud):
    (weight, _), x = loud
    bits, stats = torch.full((4,), 2), LayerStatistics.gather([x])
    ours = AWQ(clip=0.0).quantize(weight, stats, bits, BLOCK).dequantize()
    assert torch.equal(ours, RTN(search=False).quantize(weight, stats, bits, BLOCK).dequantize())
    assert isinstance(AWQ(), ScalesInputs) and not isinstance(RTN(), ScalesInputs)


@pytest.mark.parametrize("options", [{"steps": 0}, {"clip": 1.0}])
def test_a_search_without_candidates_is_refused(options):
    with pytest.raises(RecipeError, match=next(iter(options))):
        AWQ(**options)
