"""Put the native library into the wheel, where a C compiler is found.

A wheel without it compiles its own at first use.
"""

import tempfile
from importlib import util
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from packaging.tags import sys_tags

KERNELS = Path(__file__).parent / "src" / "quant_dllm" / "kernels"


class NativeLibrary(BuildHookInterface):
    """Compile `csrc` and name the platform in the wheel's tag."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the library to the wheel; an editable install compiles at first use instead."""
        if version == "editable":
            return
        compiler = load("compile")
        self.folder = tempfile.TemporaryDirectory()
        path = Path(self.folder.name) / compiler.PREBUILT.name
        try:
            compiler.build(path, compiler.find_compiler())
        except compiler.CompileError as error:
            self.app.display_warning(f"the wheel goes without its native library: {error}")
            return
        build_data["force_include"][str(path)] = "quant_dllm/kernels/lib/" + path.name
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{next(iter(sys_tags())).platform}"


def load(name: str) -> Any:
    """Import one file of the package by itself: nothing it needs is installed yet."""
    spec = util.spec_from_file_location(name, KERNELS / f"{name}.py")
    assert spec and spec.loader
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
