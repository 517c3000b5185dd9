"""A further model of a service."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from conf.errors import UserError
from conf.schema.engine import EngineSpec
from conf.schema.model import ModelSpec
from conf.schema.task import Task

_KEY = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,62}")


def service_engine() -> EngineSpec:
    """Returns the engine of a model that is served: somebody waits for its answers, so a hang is noticed sooner."""
    return EngineSpec(hang_timeout_s=60.0)


def check_model_key(key: str) -> None:
    """Checks a name below deployment.models, which stands in keys, paths and file names.

    Raises:
        UserError: when it is none.
    """
    if not _KEY.fullmatch(key):
        raise UserError(
            f"deployment.models.NAME must be a letter, then letters, digits, '_' and '-', 63 at most, got '{key}';"
            " what requests call the model is deployment.models.NAME.model.name"
        )


@dataclass(kw_only=True, slots=True)
class ServedModelSpec:
    """A model beside the first one, with replicas of its own."""

    model: ModelSpec = field(default_factory=ModelSpec)
    engine: EngineSpec = field(default_factory=service_engine)
    task: Task = Task.generate
    """What is asked of the model."""
    vllm: dict[str, Any] = field(default_factory=dict)
    """What deployment.vllm is for the first model: passed to vLLM's API, such as tool_call_parser."""
