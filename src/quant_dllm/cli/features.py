"""What this installation can do, and what brings what it cannot."""

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

PACKAGES = ("quant-dllm", "torch", "transformers", "safetensors", "huggingface-hub")
FEATURES = {
    "tasks of lm-eval": (("lm_eval",), "pip install 'quant-dllm[eval]'"),
    "picture of compare": (("matplotlib",), "pip install 'quant-dllm[report]'"),
    "serve": (("fastapi", "uvicorn", "prometheus_client"), "pip install 'quant-dllm[serve]'"),
    "offloading in transformers": (("accelerate",), "pip install accelerate"),
    "kernels, given a GPU": (("triton",), "pip install triton"),
}
"""Feature → the modules that it needs, and the command that brings them."""


def versions() -> dict[str, str]:
    """Name the versions of what everything rests on."""
    import platform

    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def devices() -> dict[str, str]:
    """Name what can be computed on."""
    import torch

    found = {"cpu": f"{torch.get_num_threads()} threads"}
    for i in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(i)
        found[f"cuda:{i}"] = f"{facts.name}, {facts.total_memory / 1e9:.1f} GB"
    return found


def features() -> dict[str, str]:
    """Say of each feature whether it is there, or what brings it."""
    found = {}
    for name, (modules, command) in FEATURES.items():
        missing = [module for module in modules if find_spec(module) is None]
        found[name] = f"{', '.join(missing)} is missing: {command}" if missing else "can be used"
    return found
