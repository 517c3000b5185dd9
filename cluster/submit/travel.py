"""Where a job's paths are on the cluster: what travels, what the nodes share, what this machine alone has."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conf import entry
from conf.errors import UserError

FILES = "_files"
"""The folder of what travels, in the job's working directory."""
_MODEL = ("path", "tokenizer", "chat_template", "adapters.*")
READ = (
    *("data.input", "data.prompt_file", "sampling.json_schema", "access.keys_file", "engine.fault.slow_start_file"),
    *(f"model.{key}" for key in _MODEL),
    *(f"deployment.models.*.model.{key}" for key in _MODEL),
    *("plan.answer_job", "parent", "recipe.steps.*.distill.teacher"),
)
"""Keys that say what a job reads; ``*`` is every name below."""
WRITTEN = (
    *("output.path", "output.store", "output.json_file", "plan.json_file", "deployment.logs", "batches.path"),
    *("engine.fault.die_once_file", "engine.fault.computed_file"),
)
"""Keys that say where it writes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Placed:
    """A job's paths, decided."""

    job: dict[str, Any]
    """The job as plain values, with paths as the cluster's nodes find them."""
    seen: dict[str, str] = field(default_factory=dict)
    """What the nodes must see, by key."""


def inside(path: Path, folder: Path, beyond: str = "@root") -> str:
    """Returns where a file of this machine is among those that travel: under its path below `folder`."""
    own = Path(os.path.normpath(path))
    if own.is_relative_to(folder):
        return (Path(FILES) / own.relative_to(folder)).as_posix()
    return f"{FILES}/{beyond}{own.as_posix()}"


def place(job: dict[str, Any], named: list[Path], here: Path, is_local: bool) -> Placed:
    """Decides where each path of a job is on the cluster.

    Args:
        job: the composed job as plain values; it is not changed.
        named: absolute paths of files and folders that travel.
        here: the current folder, absolute.
        is_local: whether the cluster's nodes see this machine's files.

    Raises:
        UserError: for a path that the nodes cannot see.
    """
    seen: dict[str, str] = {}

    def read(key: str, value: str) -> str:
        if "://" in value or (key == "sampling.json_schema" and value.lstrip().startswith("{")):
            return value
        if key == "parent":
            value = _model_folder(value)
        path = _absolute(value, here)
        if any(path.is_relative_to(folder) for folder in named):
            return inside(path, here)
        is_relative = not Path(value).expanduser().is_absolute()
        is_pattern = any(sign in value for sign in "*?[")
        if is_relative and not is_local:
            raise UserError(
                f"{key}={value} is on this machine, where the cluster's nodes cannot see it: name it in submit.files,"
                " or give the absolute path of a folder that they share"
            )
        if is_local and not is_pattern and not path.exists():
            raise UserError(f"{key}={value}: no such file or folder")
        if not is_pattern:
            seen[key] = str(path)
        return str(path)

    def written(key: str, value: str) -> str:
        if "://" in value or value == "-":
            return value
        if not Path(value).expanduser().is_absolute() and not is_local:
            raise UserError(
                f"{key}={value} would be a folder of one of the cluster's nodes: give a URI, or the absolute path of a"
                " folder that they share"
            )
        return str(_absolute(value, here))

    for patterns, move in ((READ, read), (WRITTEN, written)):
        for pattern in patterns:
            job = _moved(job, pattern.split("."), "", move)
    return Placed(job=job, seen=seen)


def shipped(job: dict[str, Any]) -> list[Path]:
    """Returns what a job reads of the demo that comes with Manta's code, which no other machine has at that path."""
    demo = entry.ROOT / "demo"
    return [path for path in map(Path, _values(job)) if path.is_absolute() and path.is_relative_to(demo)]


def _values(job: dict[str, Any]) -> Iterator[str]:
    found: list[str] = []

    def note(key: str, value: str) -> str:
        found.append(value)
        return value

    for pattern in READ:
        _moved(job, pattern.split("."), "", note)
    return iter(found)


def _moved(node: Any, parts: list[str], name: str, move: Callable[[str, str], str]) -> Any:
    """Returns a copy of plain values in which the texts that a pattern names are what `move` makes of them."""
    if not parts:
        if isinstance(node, str):
            return move(name, node) if node else node
        if isinstance(node, (list, tuple)):
            return [_moved(item, parts, name, move) for item in node]
        return node
    if not isinstance(node, dict):
        return node
    keys = list(node) if parts[0] == "*" else [key for key in parts[:1] if key in node]
    below = {key: _moved(node[key], parts[1:], f"{name}.{key}".lstrip("."), move) for key in keys}
    return {**node, **below}


def _absolute(value: str, here: Path) -> Path:
    return Path(os.path.normpath(here / Path(value).expanduser()))


def _model_folder(text: str) -> str:
    """The folder of a model that is called by its name, as model=NAME finds it."""
    if text in entry.options("model"):
        model = entry.compose_config("evaluate", f"model={text}").model
        if "path" in model:
            return str(model.path)
    return text
