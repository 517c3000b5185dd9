"""Starts llama.cpp in this process."""

from __future__ import annotations

import time

from conf.schema.engine import EngineSpec
from conf.schema.model import ModelSpec
from serve.engine.errors import EngineDead
from serve.engine.gguf.engine import GgufEngine
from serve.engine.protocol import EngineStats


async def start_gguf(model: ModelSpec, spec: EngineSpec, max_model_len: int, share: int = 1) -> GgufEngine:
    """Starts llama.cpp in this process.

    Args:
        model: a folder with a GGUF file in it.
        spec: sizes.
        max_model_len: the context in tokens.
        share: engines that share this machine's cores.

    Raises:
        EngineDead: when it does not start; the cause says why.
    """
    before = time.monotonic()
    stats = EngineStats(max_model_len=max_model_len)
    engine = GgufEngine(model, spec, stats, share)
    try:
        await engine.start()
    except Exception as error:
        raise EngineDead(f"the GGUF engine did not start: {type(error).__name__}: {error}") from error
    stats.start_s["total"] = time.monotonic() - before
    return engine
