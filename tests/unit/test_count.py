"""Counted operations against formulas; a rotated model against the model."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import rotation
import tried
from count import Call, Counter, Device, scaled
from quant_dllm.report.table import Spread


def counted(rows):
    a, b = torch.ones(rows, 30), torch.ones(30, 20)
    with Counter() as counter:
        (a @ b).t().add(1.0)
    return counter.calls


def test_products_and_bytes_are_counted():
    product, added = counted(10)
    assert (product.name, product.flops) == ("mm", 2 * 10 * 30 * 20)
    assert product.moved == 4 * (10 * 30 + 30 * 20 + 10 * 20)
    assert (added.name, added.flops, added.moved) == ("add", 0.0, 2 * 4 * 10 * 20)


def test_counts_carry_over_to_another_size():
    assert scaled(counted(10), counted(20), (10, 20), 70) == counted(70)


def test_solves_are_counted():
    with Counter() as counter:
        factor = torch.linalg.cholesky_ex(torch.eye(6).repeat(5, 1, 1))[0]
        torch.cholesky_solve(torch.ones(5, 6, 2), factor)
    flops = {call.name: call.flops for call in counter.calls}
    assert flops["linalg_cholesky_ex"] == pytest.approx(5 * 6**3 / 3)
    assert flops["cholesky_solve"] == 5 * 2 * 6 * 6 * 2


def test_a_call_is_as_slow_as_its_slowest_part():
    device = Device({torch.float32: 100.0}, bytes_per_s=10.0, launch_s=1.0)
    calls = [Call("a", torch.float32, 500.0, 20.0), Call("b", torch.float32, 1.0, 70.0),
             Call("c", torch.float32, 1.0, 1.0)]  # fmt: skip
    assert device.seconds(calls) == 5.0 + 7.0 + 1.0


def test_a_rotated_model_says_the_same(small_model, tmp_path):
    assert rotation.write(str(small_model), tmp_path / "turned") < 1e-4
    plain = rotation.open_model(small_model).tensor("blocks.0.mlp.up.weight").float()
    turned = rotation.open_model(tmp_path / "turned").tensor("blocks.0.mlp.up.weight").float()
    assert not torch.allclose(plain, turned, atol=1e-2)


def test_a_change_within_the_spread_is_unclear():
    assert tried.verdict(Spread(-0.002, 0.002), 3) == "unclear"
    assert tried.verdict(Spread(-0.02, 0.002), 3) == "yes"
    assert tried.verdict(Spread(0.02, 0.002), 3) == "no: worse"
    assert tried.verdict(Spread(0.02, float("nan")), 1) == "one seed"
