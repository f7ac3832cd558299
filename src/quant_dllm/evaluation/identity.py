"""What went into a run, as one number: equal numbers, equal results."""

import ast
import hashlib
import json
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

DECISIVE = ("calibration", "checkpoint", "embedding.py", "evaluation", "kernels", "linear.py",
            "models", "packed.py", "pipeline", "precision", "quantizers", "rounding", "statistics",
            "weights")  # fmt: skip


def identify(**ingredients: Any) -> str:
    """Hash ingredients in JSON's types; order of names does not matter."""
    text = json.dumps(ingredients, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@lru_cache
def hash_file(path: Path) -> str:
    """Hash a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


@lru_cache
def hash_code() -> str:
    """Hash what decides a result: our code without its comments and docstrings, and torch."""
    root = Path(str(files("quant_dllm")))
    digest = hashlib.sha256(torch.__version__.encode())
    for part in DECISIVE:
        found = [root / part] if part.endswith(".py") else sorted((root / part).rglob("*.py"))
        for path in found:
            digest.update(ast.dump(_bare(ast.parse(path.read_text()))).encode())
    return digest.hexdigest()[:16]


def _bare(tree: ast.Module) -> ast.Module:
    """Drop the docstrings of a module."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            value = body[0].value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                body.pop(0)
    return tree
