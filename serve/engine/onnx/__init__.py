"""The edge engine: onnxruntime, numpy and tokenizers, with neither torch nor vllm in the process."""

from __future__ import annotations

from dataclasses import replace

from conf.schema.engine import EngineSpec
from conf.schema.model import ModelSpec
from serve.engine.onnx.engine import OnnxEngine
from serve.engine.small import start_small


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
    return await start_small("edge", OnnxEngine, replace(model), spec, max_model_len, share)
