"""Starts engines that run in this process with nothing of vLLM's."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol, TypeVar

from conf.schema.engine import EngineSpec
from conf.schema.model import ModelSpec
from serve.engine.errors import EngineDead
from serve.engine.protocol import EngineStats


class Starts(Protocol):
    """What loads a model when it is told to."""

    async def start(self) -> None:
        """Loads it."""
        ...


Small = TypeVar("Small", bound=Starts)


async def start_small(
    name: str,
    make: Callable[[ModelSpec, EngineSpec, EngineStats, int], Small],
    model: ModelSpec,
    spec: EngineSpec,
    max_model_len: int,
    share: int,
) -> Small:
    """Makes an engine and loads its model.

    Args:
        name: the engine's, as people call it.
        make: its class.
        model: a folder with the engine's own file in it.
        spec: sizes.
        max_model_len: the context in tokens.
        share: engines that share this machine's cores.

    Raises:
        EngineDead: when it does not start; the cause says why.
    """
    before = time.monotonic()
    stats = EngineStats(max_model_len=max_model_len)
    engine = make(model, spec, stats, share)
    try:
        await engine.start()
    except Exception as error:
        raise EngineDead(f"the {name} engine did not start: {type(error).__name__}: {error}") from error
    stats.start_s["total"] = time.monotonic() - before
    return engine
