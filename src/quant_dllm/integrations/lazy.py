"""Register with transformers and lm-eval when they are there, and not before.

``import quant_dllm`` costs a hundredth of a second and loads no torch; transformers has no entry
points. So the import of some of its modules is watched, and when one of them is done we register:
configurations behind ``configuration_auto``, models and the quantizer behind ``modeling_utils``.
Whoever imports the auto classes of models wants ``modeling_utils`` too, later. lm-eval's table of
models takes a name and where to find it.
"""

import logging
import sys
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

CONFIGS, MODELS = "transformers.models.auto.configuration_auto", "transformers.modeling_utils"
AUTO = "transformers.models.auto.modeling_auto"
TOKENIZERS = "transformers.models.auto.tokenization_auto"
LM_EVAL_MODEL = "quant_dllm.evaluation.harness:QuantDLLM"
HARNESS = "lm_eval.api.registry"
WATCHED = (CONFIGS, AUTO, TOKENIZERS, MODELS, HARNESS)
logger = logging.getLogger(__name__)
_executed: set[str] = set()  # their code has run, although their import may not have returned


def install() -> None:
    """Watch transformers' imports; register at once what is imported already."""
    if not any(isinstance(finder, _Watcher) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Watcher())
    for name in WATCHED:
        if _is_done(name):
            _register(name)


def _is_done(name: str) -> bool:
    module = sys.modules.get(name)
    under_way = module is None or getattr(module.__spec__, "_initializing", False)
    return name in _executed or not under_way


def _register(name: str) -> None:
    try:
        _register_behind(name)
    except Exception as error:  # whoever imports that library may not want us at all
        logger.warning("quant-dllm could not register with %s: %s", name, error)


def _register_behind(name: str) -> None:
    if name == AUTO and MODELS not in sys.modules:
        import_module(MODELS)  # a model is wanted, and its auto class is in use before its base is
    if name == CONFIGS:
        import_module("quant_dllm.integrations.configs").register()
    if name == MODELS:
        import_module("quant_dllm.integrations.quantizer").register()
    if name == TOKENIZERS:
        import_module("quant_dllm.integrations.tokenizers").register()
    if name == HARNESS:
        sys.modules[name].model_registry.register("quant-dllm", target=LM_EVAL_MODEL)
    if name in (AUTO, MODELS) and _is_done(AUTO) and _is_done(MODELS):
        import_module("quant_dllm.integrations.registration").register()


class _Watcher(MetaPathFinder):
    """Lets the watched modules be found as ever, and wraps what loads them."""

    def find_spec(
        self, fullname: str, path: Any, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find a watched module; ``None`` for all others."""
        if fullname not in WATCHED:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        specs = (finder.find_spec(fullname, path, target) for finder in others)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _Then(spec.loader, fullname)
        return spec


class _Then(Loader):
    """Loads a module, then registers."""

    def __init__(self, loader: Loader, name: str):
        self._loader, self._name = loader, name

    def __getattr__(self, name: str):
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Leave it to the real loader."""
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Leave it to the real loader, then register."""
        self._loader.exec_module(module)
        _executed.add(self._name)
        if module.__spec__ is not None:
            module.__spec__.loader = module.__loader__ = self._loader
        _register(self._name)
