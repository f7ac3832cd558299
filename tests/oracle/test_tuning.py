"""Gradients of packed planes against autograd on the dense weight; the objective against KL."""

import pytest
import torch

from quant_dllm.linear import QuantLinear
from quant_dllm.quantizers.daq import DataAwareAnyOrderQuantizer
from quant_dllm.tuning.objective import TopLogits, divergence, mean_by_sequence
from quant_dllm.tuning.scales import PlaneProduct, TunableLinear, freeze, thaw


@pytest.fixture
def packed(layer):
    quantizer = DataAwareAnyOrderQuantizer(emphasis=1.0)
    return quantizer.quantize(*layer, torch.tensor([2, 1, 3, 2]), 20)


def dense(weight, rows, columns):
    """Build Ŵ of its scales by plain differentiable operations."""
    parts = []
    for place in weight.places():
        block = weight.block(place)
        signs = torch.where(block.signs, 1.0, -1.0)
        a = rows[:, place.first_plane : place.first_plane + place.order].T
        c = columns[place.first_column :][: place.order * place.width].view(place.order, -1)
        parts.append((signs * a[:, :, None] * c[:, None, :]).sum(0))
    return torch.cat(parts, dim=1)


def test_gradients_equal_autograds(packed):
    x = torch.randn(3, 5, 72, requires_grad=True)
    rows = packed.row_scales.float().requires_grad_()
    columns = packed.column_scales.float().requires_grad_()
    y = PlaneProduct.apply(x, rows, columns, packed)
    target = torch.randn_like(y)
    ours = torch.autograd.grad(((y - target) ** 2).sum(), (x, rows, columns))
    expected = x @ dense(packed, rows, columns).T
    assert torch.allclose(y, expected, atol=1e-5)
    theirs = torch.autograd.grad(((expected - target) ** 2).sum(), (x, rows, columns))
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-3)  # sums of 15 × 72 products of fp32


def test_thawing_and_freezing_change_nothing(packed):
    net = torch.nn.Sequential(QuantLinear.of(packed), torch.nn.ReLU())
    x = torch.randn(4, 72)
    before = net(x)
    learned = thaw(net)
    assert isinstance(net[0], TunableLinear) and len(learned) == 2
    assert torch.allclose(net(x), before, atol=1e-5)
    freeze(net)
    assert torch.equal(net[0].planes, packed.planes)
    assert torch.equal(net[0].row_scales, packed.row_scales)


def test_a_step_down_the_gradient_is_stored(packed, layer):
    net = torch.nn.Sequential(QuantLinear.of(packed))
    x = torch.randn(64, 72)
    target = x @ layer[0].T
    learned = thaw(net)
    optimizer = torch.optim.Adam(learned, lr=0.01)
    losses = []
    for _ in range(40):
        loss = (net(x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    freeze(net)
    assert losses[-1] < 0.8 * losses[0]
    assert (net(x) - target).square().mean().item() == pytest.approx(losses[-1], rel=0.05)


def test_the_objective_is_the_kl_where_all_tokens_are_kept():
    logits, base = torch.randn(2, 9, 30, generator=torch.Generator().manual_seed(0))
    exact = (base.softmax(-1) * (base.log_softmax(-1) - logits.log_softmax(-1))).sum(-1)
    assert torch.allclose(divergence(logits, TopLogits.of(base, 30)), exact, atol=1e-3)  # float16


def test_a_bucket_for_the_rest_bounds_the_kl_from_below():
    dice = torch.Generator().manual_seed(0)
    logits, base = torch.randn(2, 50, 30, generator=dice) * 3
    exact = (base.softmax(-1) * (base.log_softmax(-1) - logits.log_softmax(-1))).sum(-1)
    kept = divergence(logits, TopLogits.of(base, 12))
    assert (kept <= exact + 2e-3).all() and kept.mean() > 0.8 * exact.mean()
    assert (divergence(base, TopLogits.of(base, 12)).abs() < 2e-3).all()


def test_sequences_count_alike():
    values = torch.tensor([1.0, 3.0, 10.0])
    assert mean_by_sequence(values, torch.tensor([0, 0, 1]), 2) == 6.0
