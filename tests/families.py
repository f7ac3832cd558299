"""One tiny random checkpoint in upstream's form for every family, with the logits it must give.

The logits are recorded from upstream's own code where it runs (``tests/golden``), else they come
from transformers' class of the network that the family grew out of, under an explicit 4-D mask.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor

from quant_dllm.models.family import ModelFamily

GOLDEN = Path(__file__).parent / "golden"
LENGTH = 32  # tokens of the inputs; the blocks of block-causal attention divide it
MASK = 60  # id of the mask token where no recording says another one


@dataclass(frozen=True)
class Example:
    """A checkpoint and what it must answer.

    Attributes:
        folder: Upstream's form, with a tokenizer whose mask token is the family's.
        input_ids, logits: What goes in, and upstream's logits [2, 32, vocab].
        mask_token_id: What must be found.
        attention_block: What must be passed where the folder does not tell.
    """

    folder: Path
    input_ids: Tensor
    logits: Tensor
    mask_token_id: int
    attention_block: int | None = None


def write_tokenizer(folder: Path, family: ModelFamily, rows: int, mask_token_id: int) -> None:
    """Write a tokenizer of words ``w0 …`` with the family's special tokens."""
    words = [f"w{i}" for i in range(rows)]
    words[2], words[3] = "<end>", "<unk>"
    if family.end_tokens:
        words[4] = family.end_tokens[0]
    if family.mask_tokens:
        words[mask_token_id] = family.mask_tokens[0]
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {
        "tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>", "eos_token": "<end>",
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(special))


def edit(folder: Path, **changes: Any) -> None:
    """Change ``config.json``; ``None`` takes a key away."""
    path = folder / "config.json"
    raw = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in raw.items() if v is not None}))


def recorded(name: str, attention_block: int | None = None) -> Callable[..., Example]:
    """Take a recording of upstream's own code."""

    def make(folder: Path, family: ModelFamily) -> Example:
        shutil.copytree(GOLDEN / name, folder)
        golden = load_file(folder / "golden.safetensors")
        (folder / "golden.safetensors").unlink()
        edit(folder, mask_token_id=None)  # it must be found in the tokenizer
        write_tokenizer(folder, family, golden["logits"].shape[-1], 511)
        return Example(folder, golden["input_ids"], golden["logits"], 511, attention_block)

    return make


@dataclass(frozen=True)
class Oracle:
    """A class of transformers that is the family's network, once it is told who sees whom."""

    network: str
    attention_block: int | None = None
    options: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    given: int | None = None

    def __call__(self, folder: Path, family: ModelFamily) -> Example:
        import transformers

        torch.manual_seed(0)
        made = getattr(transformers, f"{self.network}Config")(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            intermediate_size=40, vocab_size=64, max_position_embeddings=64, rms_norm_eps=1e-6,
            pad_token_id=1, attn_implementation="eager", rope_theta=5e5, **self.options,
        )  # fmt: skip
        model = getattr(transformers, f"{self.network}ForCausalLM")(made).eval()
        for name, parameter in model.named_parameters():  # norms and biases that do something
            if parameter.ndim == 1:
                parameter.data += 0.3 * torch.randn_like(parameter)
            elif "embed" not in name:
                parameter.data *= 5  # transformers starts so near zero that attention is flat
        model.save_pretrained(folder)
        edit(folder, architectures=[family.architectures[0]], model_type=family.model_types[0],
             **self.config)  # fmt: skip
        write_tokenizer(folder, family, 64, MASK)
        ids = torch.randint(64, (2, LENGTH), generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            logits = model(ids, attention_mask=additive(self.attention_block)).logits
        return Example(folder, ids, logits, MASK, self.given)


def additive(block: int | None) -> Tensor:
    """Return the mask [2, 1, length, length] that a position's logits are added to."""
    place = torch.arange(LENGTH) // (block or LENGTH)
    hidden = place[:, None] < place
    return torch.zeros(2, 1, LENGTH, LENGTH).masked_fill(hidden, torch.finfo(torch.float32).min)


def modernbert(folder: Path, family: ModelFamily) -> Example:
    """Let transformers' own class answer: local attention of 8 in two layers of three."""
    from transformers import ModernBertConfig, ModernBertForMaskedLM

    torch.manual_seed(0)
    made = ModernBertConfig(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=24,
        vocab_size=64, max_position_embeddings=64, local_attention=8, pad_token_id=1,
        bos_token_id=2, eos_token_id=2, cls_token_id=2, sep_token_id=2, reference_compile=False,
        attn_implementation="eager",
    )  # fmt: skip
    model = ModernBertForMaskedLM(made).eval()
    for parameter in model.parameters():
        parameter.data = parameter.data * 8 if parameter.ndim > 1 else torch.rand_like(parameter)
    model.save_pretrained(folder)
    write_tokenizer(folder, family, 64, MASK)
    ids = torch.randint(64, (2, LENGTH), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return Example(folder, ids, model(ids).logits, MASK)


WIDE = {"head_dim": 12}  # heads are wider than width / heads
EXAMPLES: dict[str, Callable[[Path, ModelFamily], Example]] = {
    "a2d-qwen2": Oracle("Qwen2", options={"tie_word_embeddings": True}),
    "a2d-qwen3": Oracle("Qwen3", 8, options=WIDE | {"tie_word_embeddings": True}, given=8),
    "diffullama": Oracle("Llama", config={"mask_token_id": MASK}),
    "dream": recorded("dream"),
    "fast-dllm": Oracle("Qwen2", 16, config={"bd_size": 16}),
    "illada": Oracle("Llama", options={"tie_word_embeddings": True}),
    "llada": recorded("llada"),
    "llada-moe": recorded("llada_moe"),
    "llada2": recorded("llada2_moe", 8),
    "modernbert": modernbert,
    "sdar": Oracle("Qwen3", 4, options=WIDE),
}
