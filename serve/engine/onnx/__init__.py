"""The edge engine: onnxruntime, numpy and tokenizers, with neither torch nor vllm in the process."""

from __future__ import annotations

import time
from dataclasses import replace

from conf.schema.engine import EngineSpec
from conf.schema.model import ModelSpec
from serve.engine.errors import EngineDead
from serve.engine.onnx.engine import OnnxEngine
from serve.engine.protocol import EngineStats


async def start_onnx(model: ModelSpec, spec: EngineSpec, max_model_len: int, share: int = 1) -> OnnxEngine:
    """Starts an edge engine in this process.

    Args:
        model: a folder that ``recipe=onnx`` or the like made.
        spec: sizes.
        max_model_len: the context in tokens.
        share: engines that share this machine's cores.

    Raises:
        EngineDead: when it does not start; the cause says why.
    """
    before = time.monotonic()
    stats = EngineStats(max_model_len=max_model_len)
    engine = OnnxEngine(replace(model), spec, stats, share)
    try:
        await engine.start()
    except Exception as error:
        raise EngineDead(f"the edge engine did not start: {type(error).__name__}: {error}") from error
    stats.start_s["total"] = time.monotonic() - before
    return engine
