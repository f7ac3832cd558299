"""Small models in upstream form, and correlated layers, that every test may ask for."""

import json
import os
import shutil
from pathlib import Path

os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is first imported

import pytest
import torch
from jaxtyping import config as shapes
from safetensors.torch import save_file

from quant_dllm.models.backbone import Backbone
from quant_dllm.models.llada import FAMILY
from quant_dllm.models.source import locate
from quant_dllm.statistics.layer import LayerStatistics, Needs

torch.set_num_threads(1)  # two workers on two cores; OpenMP barriers cost more than they give
os.environ.setdefault("QUANT_DLLM_KERNEL", "reference")  # the same on every machine; see `kernels`
GOLDEN = Path(__file__).parent / "golden"
CONFIG = {
    "architectures": ["LLaDAModelLM"],
    "model_type": "llada",
    "d_model": 40,
    "n_layers": 2,
    "n_heads": 2,
    "n_kv_heads": 2,
    "mlp_hidden_size": 56,
    "vocab_size": 4096,
    "embedding_size": 4096,
    "max_sequence_length": 64,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-5,
}
ROUNDED = "ladder-1-rounding"
"""Binary planes without what the default adds: a recipe of seconds in a small model."""
SMALL_RECIPE = {  # short last blocks everywhere: 40 = 16 + 16 + 8, 56 = 3 · 16 + 8
    "calibration.sequences": 6,
    "calibration.length": 32,
    "precision.block_size": 16,
}


def save_model(folder: Path, config: dict, seed: int = 0, dtype=torch.float32) -> Path:
    """Write a random LLaDA that shares the bundled tokenizer."""
    folder.mkdir(parents=True)
    tiny = locate("tiny")
    vocab = json.loads((tiny / "config.json").read_text())["vocab_size"]
    config = config | {"vocab_size": vocab, "embedding_size": vocab, "mask_token_id": vocab - 1}
    torch.manual_seed(seed)
    model = Backbone(FAMILY.config(config))
    tensors = {FAMILY.upstream(n): t.to(dtype).contiguous() for n, t in model.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny / name, folder / name)
    return folder


@pytest.fixture(scope="session")
def small_model(tmp_path_factory) -> Path:
    """A random LLaDA of two blocks with the bundled tokenizer; nobody may change it."""
    return save_model(tmp_path_factory.mktemp("models") / "small", CONFIG)


@pytest.fixture
def broken_model(small_model, tmp_path) -> Path:
    """A copy of the small model, to be broken."""
    return Path(shutil.copytree(small_model, tmp_path / "broken"))


@pytest.fixture(scope="module")
def unchecked():
    """Leave out the check of types at run time, where runs are compared by bytes.

    In models this small it takes most of the time; other tests check what these call.
    """
    shapes.update("jaxtyping_disable", True)
    yield
    shapes.update("jaxtyping_disable", False)


@pytest.fixture
def kernels(monkeypatch):
    """Let the package choose its kernels, as it does for users."""
    monkeypatch.delenv("QUANT_DLLM_KERNEL", raising=False)


EVERYTHING = Needs.HESSIAN | Needs.DRIFT | Needs.SAMPLES


def correlated_layer(out: int, inputs: int, tokens: int = 512, seed: int = 0):
    """Return a weight, its inputs and their statistics; neighbouring inputs are correlated.

    The inputs of the full-precision model, to which the drift leads, are a mixture of these.
    """
    dice = torch.Generator().manual_seed(seed)
    mixing = torch.randn(inputs, inputs, generator=dice) / inputs**0.5 + torch.eye(inputs)
    x = torch.randn(tokens, inputs, generator=dice) @ mixing
    weight = torch.randn(out, inputs, generator=dice)
    return weight, x, LayerStatistics.gather([x], 0.01, EVERYTHING, [full_inputs(x)])


def full_inputs(x: torch.Tensor) -> torch.Tensor:
    """Return what the full-precision model would have seen in place of ``x`` [tokens, in]."""
    dice = torch.Generator().manual_seed(1)
    mixing = torch.randn(x.shape[1], x.shape[1], generator=dice) / x.shape[1] ** 0.5
    return x + 0.1 * x @ mixing


@pytest.fixture
def layer():
    """A weight [24, 72] and the statistics of its inputs: four blocks of 20, the last of 12."""
    weight, _, stats = correlated_layer(24, 72)
    return weight, stats
