"""vLLM's engine arguments by name, read from its source: importing vLLM takes seconds, and a typo should not."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from conf.errors import UserError, nearest


def engine_argument_names() -> frozenset[str]:
    """Returns the fields of the installed vLLM's EngineArgs; empty where vLLM is not installed.

    Source: vllm/engine/arg_utils.py, class EngineArgs (0.26-0.32).
    """
    return _fields("EngineArgs", "engine", "arg_utils.py")


def _fields(name: str, *path: str) -> frozenset[str]:
    """The annotated fields of a class of vLLM's; empty where there is no such file or class."""
    spec = find_spec("vllm")
    if spec is None or not spec.submodule_search_locations:
        return frozenset()
    source = Path(spec.submodule_search_locations[0], *path)
    for node in ast.parse(source.read_text()).body if source.is_file() else ():
        if isinstance(node, ast.ClassDef) and node.name == name:
            fields = [f.target.id for f in node.body if isinstance(f, ast.AnnAssign) and isinstance(f.target, ast.Name)]
            return frozenset(fields)
    return frozenset()


OWN_ENGINE_ARGUMENTS = {"worker_extension_cls": "it adds calls to workers, which nothing here makes"}
"""What Manta sets itself, and why nobody else needs to."""


def check_engine_arguments(arguments: dict[str, object]) -> None:
    """Checks the names under `engine.vllm`.

    Raises:
        UserError: for a name that vLLM does not have, or that is Manta's.
    """
    if not arguments:
        return
    known = engine_argument_names()
    for name in arguments:
        if name in OWN_ENGINE_ARGUMENTS:
            raise UserError(f"engine.vllm.{name} is Manta's own: {OWN_ENGINE_ARGUMENTS[name]}")
        if known and name not in known:
            raise UserError(f"engine.vllm.{name} is no engine argument of the installed vLLM{nearest(name, known)}")


OWN_API_ARGUMENTS = ("lora_modules", "chat_template", "tokens_only")
"""Of vLLM's API, what other keys say: model.adapters, model.chat_template, the routes."""


def api_argument_names() -> frozenset[str]:
    """Returns the fields of the installed vLLM's BaseFrontendArgs; empty where vLLM is not installed.

    Source: vllm/entrypoints/openai/cli_args.py (0.26), vllm/entrypoints/launchers/cli_args.py (0.32).
    """
    for path in (("launchers", "cli_args.py"), ("openai", "cli_args.py")):
        if names := _fields("BaseFrontendArgs", "entrypoints", *path):
            return names - frozenset(OWN_API_ARGUMENTS)
    return frozenset()


def check_api_arguments(arguments: Mapping[str, object]) -> None:
    """Checks what stands under `deployment.vllm`.

    Raises:
        UserError: for a name that vLLM's API does not have, and for tools without a parser.
    """
    if not arguments:
        return
    known = api_argument_names()
    for name in arguments:
        if known and name not in known:
            raise UserError(f"deployment.vllm.{name} is no argument of the installed vLLM's API{nearest(name, known)}")
    if arguments.get("enable_auto_tool_choice") and not arguments.get("tool_call_parser"):
        raise UserError("deployment.vllm.enable_auto_tool_choice needs deployment.vllm.tool_call_parser")
