"""Every baseline through the whole road: quantized, loaded, run."""

import pytest
import torch

import quant_dllm
from quant_dllm.cli.main import main
from quant_dllm.linear import QuantLinear
from quant_dllm.quantizers.gptaq import GPTAQ
from tests.conftest import SMALL_RECIPE

KINDS = {
    "gptaq-2bit": {"uniform"},
    "slim-llm-2bit": {"uniform", "affine"},  # affine where a block has one bit
    "awq-2bit": {"uniform"},
    "hqq-2bit": {"affine"},
    "billm": {"simulated"},
    "arb-llm": {"simulated"},
}


@pytest.mark.parametrize("recipe", KINDS)
def test_it_is_quantized_and_answers_by_what_it_stores(recipe, small_model, tmp_path, capsys):
    record = quant_dllm.quantize(small_model, tmp_path / "q", recipe, settings=SMALL_RECIPE)
    assert {layer.layout["kind"] for layer in record.layers} <= KINDS[recipe]
    budget = 2.0 if recipe.endswith("2bit") else 1.0
    if "simulated" in KINDS[recipe]:
        assert budget < record.bits.code < budget + 1  # planes of salient columns
    else:
        assert record.bits.code == budget
    assert record.bits.code < record.bits.stored
    assert all(0 < layer.error < 1 for layer in record.layers if layer.error is not None)
    assert main(["inspect", str(tmp_path / "q")]) == 0
    facts = capsys.readouterr().out
    assert ("layers are simulated" in facts) == ("simulated" in KINDS[recipe])
    model = quant_dllm.load(tmp_path / "q")
    ids = torch.arange(24).view(2, 12)
    logits = model(ids).logits
    for name, module in list(model.backbone.named_modules()):
        if isinstance(module, QuantLinear):
            plain = torch.nn.Linear(*module.weight.dequantize().T.shape, bias=False)
            plain.weight.data = module.weight.dequantize()
            parent, _, leaf = name.rpartition(".")
            setattr(model.backbone.get_submodule(parent), leaf, plain)
    assert torch.allclose(model(ids).logits, logits, atol=1e-5)  # fp32


def test_the_drift_of_the_first_stage_is_none_and_of_later_ones_is_seen(
    small_model, tmp_path, monkeypatch
):
    """Until something is rounded, the model is the full-precision model."""
    seen, quantize = [], GPTAQ.quantize

    def watch(self, weight, stats, bits, block_size):
        seen.append((stats.drift.abs().max() / stats.moment.abs().max()).item())
        return quantize(self, weight, stats, bits, block_size)

    monkeypatch.setattr(GPTAQ, "quantize", watch)
    quant_dllm.quantize(small_model, tmp_path / "q", "gptaq-2bit", settings=SMALL_RECIPE)
    assert seen[:3] == [0.0] * 3  # q, k, v of the first block
    assert all(drift > 1e-3 for drift in seen[3:])
