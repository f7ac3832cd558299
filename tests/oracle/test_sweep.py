"""Error feedback against its definition: re-solve the least squares after every column."""

import pytest
import torch

from quant_dllm.quantizers.daq import DataAwareAnyOrderQuantizer
from quant_dllm.quantizers.gptq import GPTQ
from quant_dllm.quantizers.rtn import RTN
from quant_dllm.rounding.grid import Grid
from quant_dllm.rounding.planes import fit_joint, nearest_signs
from quant_dllm.rounding.sweep import Coded, block_error, column_by_column, sweep
from quant_dllm.statistics.hessian import damp, inverse_factor
from quant_dllm.statistics.layer import output_error

BLOCK = 20  # four blocks, the last of 12


def free_columns_at_their_optimum(weight, q, h, done):
    """Given the first ``done`` columns as ``q`` has them, move the others to their optimum."""
    rounded, free = slice(0, done), slice(done, None)
    moved = weight.clone()
    if done < weight.shape[1]:
        delta = weight[:, rounded] - q[:, rounded]
        moved[:, free] += torch.linalg.solve(h[free, free], h[free, rounded] @ delta.T).T
    return moved


def optimal_brain_quantizer(weight, h, fit_block):
    """Round column after column; before each, solve for the best of all that is still free."""
    q, coder = torch.zeros_like(weight), None
    for j in range(weight.shape[1]):
        current = free_columns_at_their_optimum(weight, q, h, j)
        if j % BLOCK == 0:
            coder = fit_block(current[:, j : j + BLOCK])
        q[:, j] = coder(j % BLOCK, current[:, j])
    return q


def damped(stats):
    return damp(stats.hessian.double(), 0.01)


def test_the_factor_is_that_of_the_inverse(layer):
    _, stats = layer
    U = stats.factor.double()
    assert torch.equal(U, U.triu())
    inverse = torch.linalg.inv(damped(stats))
    assert torch.allclose(U.T @ U, inverse, rtol=1e-3, atol=1e-5 * inverse.abs().max().item())


@pytest.mark.parametrize("static_groups", [False, True])
def test_gptq_equals_optimal_brain_quantization_across_blocks(layer, static_groups):
    weight, stats = layer
    bits, original = torch.full((4,), 2), list(weight.split(BLOCK, dim=1))

    def fit_block(block):
        grid = Grid.fit(original.pop(0) if static_groups else block.float(), 2)
        return lambda j, w: grid.round(w.float()).double()

    ours = GPTQ(static_groups=static_groups).quantize(weight, stats, bits, BLOCK).dequantize()
    oracle = optimal_brain_quantizer(weight.double(), damped(stats), fit_block)
    assert torch.allclose(ours.double(), oracle, atol=1e-4)  # fp32, 72 solves of condition 1e3


@pytest.mark.parametrize("orders", [[2, 2, 2, 2], [1, 3, 2, 2]])
def test_signs_in_the_sweep_equal_optimal_brain_quantization(layer, orders):
    weight, stats = layer
    queue = list(orders)

    def fit_block(block):
        fit = fit_joint(block.float(), None, queue.pop(0), 15, 0.0).halve()

        def column(j, w):
            scales = fit.rows * fit.columns[:, j, None]
            return (nearest_signs(w.float(), scales) * scales).sum(0).double()

        return column

    quantizer = DataAwareAnyOrderQuantizer(emphasis=1.0, feedback="in-sweep")
    ours = quantizer.quantize(weight, stats, torch.tensor(orders), BLOCK).dequantize()
    oracle = optimal_brain_quantizer(weight.double(), damped(stats), fit_block)
    assert torch.allclose(ours.double(), oracle, atol=1e-4)


def test_the_exact_form_moves_later_blocks_to_their_optimum(layer):
    weight, stats = layer
    h = damped(stats)
    q = torch.zeros_like(weight).double()
    for start in range(0, 72, BLOCK):
        current = free_columns_at_their_optimum(weight.double(), q, h, start)
        block = current[:, start : start + BLOCK].float()
        q[:, start : start + BLOCK] = fit_joint(block, None, 2, 15, 0.0).halve().values().double()
    quantizer = DataAwareAnyOrderQuantizer(emphasis=1.0, feedback="exact")
    ours = quantizer.quantize(weight, stats, torch.full((4,), 2), BLOCK).dequantize()
    assert torch.allclose(ours.double(), q, atol=1e-3)  # fits of fp32 blocks that differ by 1e-6


def test_a_decided_block_swept_by_columns_is_the_triangular_solve(layer):
    weight, stats = layer
    block, U = weight[:, :BLOCK], stats.factor[:BLOCK, :BLOCK]
    decided = fit_joint(block, None, 2, 5, 0.0).values()
    values, error = column_by_column(block, U, lambda j, _: decided[:, j])
    assert torch.equal(values, decided)
    assert torch.allclose(error, block_error(block, decided, U), atol=1e-4)


def test_the_release_form_divides_by_the_diagonal(layer):
    """A plain transcription of method.md's row: E = (W_b − Ŵ_b) / U_jj, later columns −= E U."""
    weight, stats = layer
    U, rest = stats.factor, weight.clone()
    q = torch.zeros_like(weight)
    for start in range(0, 72, BLOCK):
        here = slice(start, min(start + BLOCK, 72))
        block = rest[:, here].clone()
        z = (block / U.diagonal()[here]) ** 2
        important = ((z - z.mean()) / z.std()).abs() > 2.0
        omega = torch.where(important, 3.0, 1.0)
        q[:, here] = fit_joint(block, omega, 2, 15, 0.0).halve().values()
        rest[:, here.stop :] -= ((block - q[:, here]) / U.diagonal()[here]) @ U[here, here.stop :]
    release = DataAwareAnyOrderQuantizer(sigmas=2.0, emphasis=3.0, feedback="diagonal")
    ours = release.quantize(weight, stats, torch.full((4,), 2), BLOCK).dequantize()
    assert torch.allclose(ours, q, atol=1e-4)


def test_feedback_helps_and_more_of_it_helps_more(layer):
    weight, stats = layer
    bits = torch.full((4,), 2)

    def error(feedback):
        quantizer = DataAwareAnyOrderQuantizer(emphasis=1.0, feedback=feedback)
        return output_error(
            weight, quantizer.quantize(weight, stats, bits, BLOCK).dequantize(), stats
        )

    none, diagonal, exact, sweep = map(error, ("none", "diagonal", "exact", "in-sweep"))
    assert sweep < exact < none
    assert diagonal < none


def test_rtn_rounds_each_group_alone(layer):
    weight, stats = layer
    ours = RTN(search=False).quantize(weight, stats, torch.full((4,), 2), BLOCK).dequantize()
    for start in range(0, 72, BLOCK):
        group = weight[:, start : start + BLOCK]
        low = group.amin(1, keepdim=True).clamp(max=0)
        high = group.amax(1, keepdim=True).clamp(min=0)
        scale = ((high - low) / 3).half().float()
        zero = (-low / scale).round()
        expected = (((group / scale).round() + zero).clamp(0, 3) - zero) * scale
        assert torch.allclose(ours[:, start : start + BLOCK], expected, atol=1e-6)


def test_the_clip_search_finds_the_least_error_of_all_shares():
    block = torch.randn(5, 40, generator=torch.Generator().manual_seed(0)) ** 3

    def errors(share):
        grid = Grid._span(block.amin(1).clamp_max(0) * share, block.amax(1).clamp_min(0) * share, 2)
        return (grid.round(block.T).T - block).square().sum(1)

    best = torch.stack([errors(1 - step / 100) for step in range(80)]).amin(0)
    found = Grid.fit(block, 2, search=True)
    assert torch.allclose((found.round(block.T).T - block).square().sum(1), best)


def test_a_hessian_of_too_few_tokens_is_damped_until_it_can_be_factored():
    x = torch.randn(3, 50, generator=torch.Generator().manual_seed(0)) * 1e3
    hessian = x.T @ x
    hessian[7], hessian[:, 7] = 0.0, 0.0  # a dead input
    U = inverse_factor(hessian, 0.01)
    assert torch.isfinite(U).all() and (U.diagonal() > 0).all()


def test_gptq_gains_over_nearest_what_was_published(layer):
    """On whole numbers without end, nearest loses tr(H)/12 a row and GPTQ tr(D)/12, D = diag(U)⁻².

    Reference: Chee et al., "QuIP", arXiv:2307.13304, theorem 1, whose LDLQ is GPTQ.
    """
    _, stats = layer
    U, H = stats.factor, damp(stats.hessian, stats.damping)
    weight = 20 * torch.rand(4096, len(H), generator=torch.Generator().manual_seed(0))

    def code(block, channels, index):
        return Coded(*column_by_column(block, U[channels, channels], lambda _, w: w.round()))

    def lost(rounded):
        return (((weight - rounded) @ H) * (weight - rounded)).sum().item() / len(weight)

    nearest, swept = H.trace().item() / 12, U.diagonal().pow(-2).sum().item() / 12
    assert lost(weight.round()) == pytest.approx(nearest, rel=0.05)  # a sum over 4096 rows
    assert lost(torch.cat(sweep(weight, U, BLOCK, code), dim=1)) == pytest.approx(swept, rel=0.05)
    assert swept < 0.9 * nearest
