"""vLLM's engine arguments by name, read from its source: importing vLLM takes seconds, and a typo should not."""

from __future__ import annotations

import ast
from importlib.util import find_spec
from pathlib import Path

from conf.errors import UserError, nearest


def engine_argument_names() -> frozenset[str]:
    """Returns the fields of the installed vLLM's EngineArgs; empty where vLLM is not installed.

    Source: vllm/engine/arg_utils.py, class EngineArgs (0.26-0.32).
    """
    spec = find_spec("vllm")
    if spec is None or not spec.submodule_search_locations:
        return frozenset()
    source = Path(spec.submodule_search_locations[0], "engine", "arg_utils.py")
    for node in ast.parse(source.read_text()).body:
        if isinstance(node, ast.ClassDef) and node.name == "EngineArgs":
            fields = [f.target.id for f in node.body if isinstance(f, ast.AnnAssign) and isinstance(f.target, ast.Name)]
            return frozenset(fields)
    return frozenset()


def check_engine_arguments(arguments: dict[str, object]) -> None:
    """Checks the names under `engine.vllm`.

    Raises:
        UserError: for a name that vLLM does not have.
    """
    if not arguments:
        return
    known = engine_argument_names()
    for name in arguments:
        if known and name not in known:
            raise UserError(f"engine.vllm.{name} is no engine argument of the installed vLLM{nearest(name, known)}")
