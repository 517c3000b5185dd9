"""Chooses the adapter."""

from __future__ import annotations

from conf.schema.engine import Device, EngineKind, EngineSpec
from conf.schema.model import ModelSpec
from conf.schema.task import Task
from serve.engine.protocol import Engine


def knows_forced(kind: EngineKind) -> bool:
    """Whether an engine can say how likely a given text is; see `Request.forced_from`."""
    return kind in (EngineKind.vllm, EngineKind.onnx, EngineKind.fake)


async def start_engine(
    model: ModelSpec,
    spec: EngineSpec,
    device: Device,
    max_model_len: int,
    share: int = 1,
    task: Task = Task.generate,
    api_key: str | None = None,
    is_bulk: bool = False,
) -> Engine:
    """Starts an engine in this process and returns it, ready.

    Args:
        model: the checkpoint.
        spec: sizes, kind and the engine's own arguments.
        device: cpu or cuda, decided.
        max_model_len: the context in tokens.
        share: engines that share this machine's cores.
        task: what its requests ask for; an engine does one task.
        api_key: of the service, where that is the engine.
        is_bulk: whether it is a job's, where as many sequences as may be are there at any time.

    Raises:
        EngineDead: when it does not start.
    """
    if spec.kind is EngineKind.fake:
        from serve.engine.fake import FakeEngine
        from serve.engine.prompt import load_renderer

        decode = load_renderer(model, max_model_len, None).decode
        engine = FakeEngine(spec, max_model_len, decode, task, model.adapters)
        await engine.start()
        return engine
    if spec.kind is EngineKind.service:
        from serve.engine.service.engine import ServiceEngine

        service = ServiceEngine(model, spec, max_model_len, task, api_key)
        await service.start()
        return service
    if spec.kind is EngineKind.onnx:
        from serve.engine.onnx import start_onnx

        return await start_onnx(model, spec, max_model_len, share)
    if spec.kind is EngineKind.gguf:
        from serve.engine.gguf.start import start_gguf

        return await start_gguf(model, spec, max_model_len, share)
    from serve.engine.vllm import start_vllm

    return await start_vllm(model, spec, device, share, task, is_bulk)
