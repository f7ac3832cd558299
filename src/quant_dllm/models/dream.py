"""Dream, Dream-Coder and DiffuCoder: Qwen2.5 taught to denoise; logits are shifted by one.

References: Ye et al., "Dream 7B", arXiv:2508.15487; Gong et al., "DiffuCoder", arXiv:2506.20639.
"""

from typing import Any

from quant_dllm.models import llama
from quant_dllm.models.config import BackboneConfig
from quant_dllm.models.family import ModelFamily
from quant_dllm.models.sampling import Sampling
from quant_dllm.models.scoring import Scoring


def config(raw: dict[str, Any]) -> BackboneConfig:
    """Read Qwen2's ``config.json``, which does not say that q, k and v have biases."""
    return llama.read(raw, qkv_bias=True)


FAMILY = ModelFamily(
    name="dream",
    models="Dream-v0-7B Base and Instruct, Dream-Coder-7B, DiffuCoder-7B",
    architectures=("DreamModel",),
    model_types=("Dream",),
    config=config,
    mask_tokens=("<|mask|>",),
    mask_token_id=151666,
    end_tokens=("<|im_end|>",),
    shift=True,
    sampling=Sampling(temperature=0.2, top_p=0.95, remasking="entropy"),
    scoring=Scoring(hiding="rate", stratum=32, bos=True, eos=True),
    names=llama.NAMES,
)
