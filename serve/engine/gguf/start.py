"""Starts llama.cpp in this process."""

from __future__ import annotations

from conf.schema.engine import EngineSpec
from conf.schema.model import ModelSpec
from serve.engine.gguf.engine import GgufEngine
from serve.engine.small import start_small


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
    return await start_small("GGUF", GgufEngine, model, spec, max_model_len, share)
