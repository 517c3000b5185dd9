"""Names of vLLM that Ray 2.60's `ray.serve.llm` imports, for a vLLM that has them elsewhere.

Ray 2.60 pins vllm 0.29. With 0.26 three names are missing, which a replica would fail for: two modules that have moved
since and one exception. Nothing that is measured changes.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

MOVED = {
    "vllm.entrypoints.launchers": None,
    "vllm.entrypoints.launchers.cli_args": "vllm.entrypoints.openai.cli_args",
    "vllm.entrypoints.serve.engine.protocol": "vllm.entrypoints.openai.engine.protocol",
}
"""Where a module was before; null is a package that there was not."""


class _Names(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """The last finder: asked for what no other one has."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: Any = None) -> Any:
        if fullname not in MOVED:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=MOVED[fullname] is None)

    def create_module(self, spec: Any) -> ModuleType:
        return ModuleType(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        if former := MOVED[module.__name__]:
            names = vars(importlib.import_module(former))
            vars(module).update({name: value for name, value in names.items() if not name.startswith("__")})
        errors: Any = importlib.import_module("vllm.exceptions")
        if not hasattr(errors, "VLLMClientError"):
            errors.VLLMClientError = errors.VLLMValidationError


def install() -> None:
    """Makes the names importable where they are missing; imports nothing by itself."""
    if not any(isinstance(finder, _Names) for finder in sys.meta_path):
        sys.meta_path.append(_Names())
