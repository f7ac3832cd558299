"""Folders, 16-bit and packed, in transformers: the same logits, or an error; never random weights.

Runs on whatever version of transformers is installed; ``make test-matrix`` runs it on two.
"""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

import quant_dllm
from quant_dllm.checkpoint.folder import METHOD
from quant_dllm.checkpoint.shim import OURS, SHIM, TAKEN
from quant_dllm.errors import CheckpointError, ModelError, RequestError
from quant_dllm.models.experts import Router
from quant_dllm.models.load import load
from tests.families import edit

FP32 = {"dtype": torch.float32}


def difference(model, ours, ids):
    return (model(ids).logits - ours(ids).logits).abs().max().item()


@pytest.fixture(scope="session")
def hosted(packed):
    return AutoModel.from_pretrained(packed[1], **FP32)


@pytest.fixture(scope="session")
def ours(packed):
    return load(packed[1])


def test_a_16_bit_folder_gives_upstreams_logits(family, example):
    if family.model_types[0] in TAKEN:
        pytest.skip(f"transformers has {family.model_types[0]} itself")
    told = {} if example.attention_block is None else {"attention_block": example.attention_block}
    model = AutoModel.from_pretrained(example.folder, **FP32, **told)
    assert type(model).__name__ in family.architectures
    assert (model(example.input_ids).logits - example.logits).abs().max() <= 1e-4
    assert model.get_input_embeddings().weight.shape[0] == example.logits.shape[-1]


def test_a_packed_folder_gives_our_logits(hosted, ours, example):
    assert difference(hosted, ours, example.input_ids) == 0
    assert all(not p.requires_grad for p in hosted.parameters() if p.dtype == torch.uint8)
    assert {b.dtype for b in hosted.buffers()} <= {torch.float32}  # rotary tables of a wrapped one


def test_the_configuration_is_read_as_ours(family, packed, ours):
    raw = AutoConfig.from_pretrained(packed[1]).to_dict()
    assert family.config(raw) == ours.source.config


def test_the_tokenizer_is_ours(packed, ours):
    text = "w5 w6 w40"
    assert (
        AutoTokenizer.from_pretrained(packed[1])(text).input_ids == ours.tokenizer(text).input_ids
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_changes_nothing_that_is_packed(packed, example, dtype):
    hosted, ours = AutoModel.from_pretrained(packed[1], dtype=dtype), load(packed[1], dtype=dtype)
    assert difference(hosted, ours, example.input_ids) == 0
    for router in (m for m in hosted.modules() if isinstance(m, Router)):
        assert router.weight.dtype == torch.float32


def test_it_is_saved_in_shards_and_loaded_again(packed, hosted, ours, example, tmp_path):
    hosted.save_pretrained(tmp_path, max_shard_size="20KB")
    again = AutoModelForCausalLM.from_pretrained(tmp_path, **FP32)
    assert difference(again, ours, example.input_ids) == 0
    assert (tmp_path / SHIM).is_file()
    raw = json.loads((tmp_path / "config.json").read_text())
    assert raw["auto_map"]["AutoModel"] == f"{SHIM.removesuffix('.py')}.Model"
    stored = {}
    for shard in tmp_path.glob("*.safetensors"):
        stored |= load_file(shard)
    before = load_file(packed[1] / "model.safetensors")
    assert set(stored) == set(before)
    kept = {name for name in before if name.rpartition(".")[2] in {"planes", "row_scales"}}
    assert all(torch.equal(stored[name], before[name]) for name in kept)
    assert difference(load(tmp_path), ours, example.input_ids) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_block_may_stay_on_the_disk(packed, family, example, tmp_path, dtype):
    pytest.importorskip("accelerate")
    last = family.upstream("blocks.1.attention.out.weight" if family.name != "modernbert"
                           else "blocks.1.layer.attn.Wo.weight")  # fmt: skip
    block = last[: last.index(".1.") + 2]
    ours, places = load(packed[1], dtype=dtype), {block: "disk"}
    for name in ours.backbone.state_dict():
        path = family.upstream(name).rpartition(".")[0]
        if not path.startswith(f"{block}."):
            places[path] = "cpu"
    model = AutoModel.from_pretrained(
        packed[1], dtype=dtype, device_map=places, offload_folder=tmp_path
    )
    assert any(p.is_meta for p in model.get_submodule(block).parameters())
    assert difference(model, ours, example.input_ids) == 0


def test_all_may_be_placed_by_accelerate(packed, ours, example):
    pytest.importorskip("accelerate")
    model = AutoModel.from_pretrained(packed[1], **FP32, device_map="auto")
    assert difference(model, ours, example.input_ids) == 0


def test_packed_tensors_that_were_changed_are_refused(packed, tmp_path):
    folder = shutil.copytree(packed[1], tmp_path / "changed")
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if name.endswith(".planes"))
    tensors[name] = tensors[name] ^ 1
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for loader in (AutoModel.from_pretrained, load):
        with pytest.raises(CheckpointError, match="fingerprint"):
            loader(folder)


def test_a_folder_that_lacks_a_tensor_is_refused(packed, tmp_path):
    folder = shutil.copytree(packed[1], tmp_path / "lacking")
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if "norm" in name)
    del tensors[name]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="missing keys: "):
        AutoModel.from_pretrained(folder)


def test_the_model_type_is_one_that_only_we_have(packed):
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    raw = json.loads((packed[1] / "config.json").read_text())
    assert raw["model_type"] not in CONFIG_MAPPING_NAMES
    assert (
        raw["model_type"].removeprefix(OURS) in CONFIG_MAPPING_NAMES
        or OURS not in raw["model_type"]
    )
    assert raw["auto_map"]["AutoModel"] == f"{SHIM.removesuffix('.py')}.Model"
    assert raw["quantization_config"]["quant_method"] == METHOD


ALONE = """
import sys
sys.modules["quant_dllm"] = None  # as if it were not installed
from transformers import AutoModel
AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)
"""
REMOTE = """
import sys
from transformers import AutoModel
model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)
assert "quant_dllm" in sys.modules
assert any(p.dtype.is_floating_point is False for p in model.parameters())
"""


def in_a_process(code, folder, home):
    env = os.environ | {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, env=env
    )


@pytest.mark.parametrize("name", ["llada", "modernbert"])
def test_without_this_package_loading_fails_with_the_command(family, packed, tmp_path, name):
    if family.name != name:
        pytest.skip("one family that is ours and one that is transformers'")
    found = in_a_process(ALONE, packed[1], tmp_path)
    assert found.returncode == 1
    assert "pip install quant-dllm" in found.stderr
    assert in_a_process(REMOTE, packed[1], tmp_path).returncode == 0


def test_quantizing_while_loading_is_refused_with_the_command(family, example):
    if family.model_types[0] in TAKEN:
        pytest.skip(f"transformers has {family.model_types[0]} itself")
    with pytest.raises(RequestError, match="Run quant-dllm quantize MODEL -o OUT"):
        AutoModel.from_pretrained(example.folder, quantization_config=quant_dllm.QuantDLLMConfig())


def test_padding_is_refused(hosted, family, example):
    if family.name == "modernbert":
        pytest.skip("transformers' own class pads")
    mask = torch.ones_like(example.input_ids)
    hosted(example.input_ids, attention_mask=mask)
    mask[0, -1] = 0
    with pytest.raises(RequestError, match="Pass sequences of one length"):
        hosted(example.input_ids, attention_mask=mask)


def test_a_model_of_random_weights_can_be_made(family, packed):
    config = AutoConfig.from_pretrained(packed[1])
    del config.quantization_config
    model = AutoModel.from_config(config)
    logits = model(torch.arange(8)[None]).logits
    assert torch.isfinite(logits).all() and logits.std() > 0


def test_one_model_type_two_architectures(tmp_path, family, example):
    if family.name != "llada-moe":
        pytest.skip("LLaDA-MoE calls itself llada")
    assert AutoConfig.from_pretrained(example.folder).model_type == "llada"
    folder = shutil.copytree(example.folder, tmp_path / "unknown")
    edit(folder, architectures=["LLaDAOther"])
    with pytest.raises(ModelError, match="not known"):
        AutoModel.from_pretrained(folder)


def test_importing_loads_neither_torch_nor_transformers():
    code = (
        "import sys, quant_dllm; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_order_of_imports_does_not_matter(family, packed):
    if family.name != "llada":
        pytest.skip("the same for all")
    code = """
import sys
from transformers import AutoModel, PreTrainedModel
import quant_dllm
AutoModel.from_pretrained(sys.argv[1])
"""
    assert subprocess.run([sys.executable, "-c", code, str(packed[1])]).returncode == 0
    assert transformers.__version__


@pytest.mark.parametrize(
    "first", ["modeling_layers", "modeling_utils", "models.auto", "models.modernbert", "pipelines"]
)
def test_the_classes_are_there_whatever_of_transformers_is_imported_first(first):
    code = f"""
import quant_dllm
import transformers.{first}
from transformers import AutoModel
from quant_dllm.integrations.configs import model_types
from transformers.models.auto.modeling_auto import MODEL_MAPPING
known = {{config.model_type for config in MODEL_MAPPING._extra_content}}
assert set(model_types()) <= known, set(model_types()) - known
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert "could not register" not in found.stderr
