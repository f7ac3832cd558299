"""ARB-LLM_RC against its equations 12 and 13, zone by zone and number by number."""

from itertools import pairwise, product

import numpy as np
import pytest
import torch

from quant_dllm.errors import RecipeError
from quant_dllm.quantizers.arb_llm import ARBLLM, start_inside
from quant_dllm.quantizers.billm import BiLLM
from quant_dllm.rounding.planes import refine
from quant_dllm.statistics.hessian import damp
from quant_dllm.statistics.layer import LayerStatistics, output_error
from tests.oracle.test_billm import salient, split

BLOCK = 20  # four blocks, the last of 12


def mean(numbers):
    return sum(numbers) / len(numbers) if numbers else 0.0


def ratio(a, b):
    return a / b if b > 0 else 0.0


class Zone:
    """Planes over the weights of one zone, each step by loops over rows, columns and members."""

    def __init__(self, w, part, order):
        self.w, self.part = w, part
        n, m = w.shape
        self.rows = [[j for j in range(m) if part[i, j]] for i in range(n)]
        self.columns = [[i for i in range(n) if part[i, j]] for j in range(m)]
        self.a, self.c = np.zeros((order, n)), np.zeros((order, m))
        self.b = np.ones((order, n, m))
        for k in range(order):
            r = self.left(k, range(k))
            self.a[k] = [mean([abs(r[i, j]) for j in self.rows[i]]) for i in range(n)]
            self.c[k] = [mean([ratio(abs(r[i, j]), self.a[k, i]) for i in self.columns[j]])
                         for j in range(m)]  # fmt: skip
            self.b[k] = np.where(r < 0, -1, 1)

    def left(self, k, planes):
        """Return what some planes leave of the weights; k itself is not among them."""
        return self.w - sum((np.outer(self.a[p], self.c[p]) * self.b[p] for p in planes if p != k),
                            np.zeros_like(self.w))  # fmt: skip

    def update(self):
        """Set row scales, then column scales of each plane; then the signs to the nearest sum."""
        order, (n, m) = len(self.a), self.w.shape
        for k in range(order):
            r, b = self.left(k, range(order)), self.b[k]
            for i, js in enumerate(self.rows):
                self.a[k, i] = ratio(sum(r[i, j] * self.c[k, j] * b[i, j] for j in js),
                                     sum(self.c[k, j] ** 2 for j in js))  # fmt: skip
            for j, rows in enumerate(self.columns):
                self.c[k, j] = ratio(sum(r[i, j] * self.a[k, i] * b[i, j] for i in rows),
                                     sum(self.a[k, i] ** 2 for i in rows))  # fmt: skip
        for i, j in product(range(n), range(m)):
            terms = self.a[:, i] * self.c[:, j]
            self.b[:, i, j] = min(product((-1, 1), repeat=order),
                                  key=lambda s: abs(terms @ s - self.w[i, j]))  # fmt: skip

    def values(self):
        """Return the planes' sum with scales of 16 bits, the columns' having mean one."""
        size = np.abs(self.c).mean(1, keepdims=True)
        size = np.where(size > 0, size, 1)
        a = (self.a * size).astype(np.float16).astype(float)
        c = (self.c / size).astype(np.float16).astype(float)
        return np.einsum("ki,kj,kij->ij", a, c, self.b) * self.part


def by_the_equations(weight, stats, bits, rounds):
    U = torch.linalg.cholesky(torch.linalg.inv(damp(stats.hessian.double(), 0.01)), upper=True)
    U, rest = U.numpy(), weight.double().numpy().copy()
    q = np.zeros_like(rest)
    for b, start in enumerate(range(0, rest.shape[1], BLOCK)):
        here = slice(start, min(start + BLOCK, rest.shape[1]))
        block, d = rest[:, here].copy(), U.diagonal()[here]
        columns = salient(block, d, 30)
        others = [j for j in range(block.shape[1]) if j not in columns]
        for chosen, order in ((columns, bits[b] + 1), (others, bits[b])):
            w = block[:, sorted(chosen)]
            low = np.abs(w) <= split(w, np.ones(w.shape, dtype=bool), 9)
            for part in (low, ~low):
                zone = Zone(w, part, order)
                for _ in range(rounds):
                    zone.update()
                q[:, start + np.array(sorted(chosen))] += zone.values()
        rest[:, here.stop :] -= (block - q[:, here]) / d @ U[here, here.stop :]
    return torch.from_numpy(q)


@pytest.mark.parametrize(("bits", "rounds"), [([1, 1, 1, 1], 4), ([2, 1, 1, 2], 3)])
def test_it_equals_the_equations_taken_by_loops(layer, bits, rounds):
    weight, stats = layer
    ours = ARBLLM(rounds=rounds).quantize(weight, stats, torch.tensor(bits), BLOCK).dequantize()
    oracle = by_the_equations(weight, stats, bits, rounds)
    # below four half a step of float16 as it is stored, and one for each further plane of salient
    # columns: in float32 a scale may fall on the other side of the float16 that float64 rounds to
    assert torch.allclose(ours.double(), oracle, atol=1e-3 * (max(bits) + 1))


def zone_loss(fit, w, area):
    return ((w - fit.values()) * area).double().square().sum()


@pytest.mark.parametrize("order", [1, 2])
def test_more_rounds_never_raise_the_error_of_a_zone(layer, order):
    w = layer[0][:, :BLOCK]
    area = w.abs() > 0.5
    losses = [
        zone_loss(refine(start_inside(w, area, order), w, area.float(), r, 0.0), w, area)
        for r in range(6)
    ]
    assert all(b <= a * (1 + 1e-5) for a, b in pairwise(losses))
    assert losses[-1] < 0.99 * losses[0]


def test_what_lies_outside_of_a_zone_does_not_matter(layer):
    w = layer[0][:, :BLOCK]
    area = w.abs() > 0.5
    other = torch.where(area, w, 100.0)
    fits = [refine(start_inside(v, area, 2), v, area.float(), 5, 0.0) for v in (w, other)]
    assert torch.equal(fits[0].values() * area, fits[1].values() * area)


def test_bits_are_those_of_the_zones_laid_out():
    """One block by hand: every sign, map and scale that a reader would need."""
    dice = torch.Generator().manual_seed(0)
    weight = torch.randn(10, 16, generator=dice)
    stats = LayerStatistics.gather([torch.randn(99, 16, generator=dice)])
    ours = ARBLLM(salient=1).quantize(weight, stats, torch.tensor([1]), 16)
    signs = 10 * 15 + 10 * 2
    maps = 10 * 16 + 16
    scales = 16 * (2 * (10 + 15) + 2 * 2 * (10 + 1))
    assert ours.stored_bits == (signs + maps + scales + 8) / 160
    assert ours.code_bits == signs / 160


def test_it_improves_on_billm(layer):
    weight, stats = layer
    ours, before = (
        output_error(
            weight, method.quantize(weight, stats, torch.ones(4).int(), BLOCK).dequantize(), stats
        )
        for method in (ARBLLM(), BiLLM())
    )
    assert ours < before


@pytest.mark.parametrize("width", [1, 2])
def test_a_last_block_may_be_of_one_channel(width):
    dice = torch.Generator().manual_seed(0)
    stats = LayerStatistics.gather([torch.randn(99, 16 + width, generator=dice)])
    weight = torch.randn(6, 16 + width, generator=dice)
    values = ARBLLM().quantize(weight, stats, torch.tensor([1, 1]), 16).dequantize()
    assert torch.isfinite(values).all() and (values != 0).all()


@pytest.mark.parametrize("options", [{"rounds": -1}, {"salient": 0}, {"splits": 0}])
def test_searches_without_a_candidate_are_refused(options):
    with pytest.raises(RecipeError, match=next(iter(options))):
        ARBLLM(**options)
