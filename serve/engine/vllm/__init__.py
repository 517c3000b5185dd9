"""The only importer of vllm (0.26-0.32, CPU and CUDA builds). Engine arguments keep vLLM's own names."""

from __future__ import annotations

import os
import time

from conf.schema.engine import Device, EngineProcess, EngineSpec
from conf.schema.model import ModelSpec
from conf.schema.task import Task
from serve.engine.errors import EngineDead
from serve.engine.protocol import Engine, EngineStats
from serve.engine.vllm.arguments import prepare_engine
from serve.engine.vllm.engine_log import EngineLog
from serve.engine.vllm.inline import InlineVllm
from serve.engine.vllm.questions import Questions
from serve.engine.vllm.separate import SeparateVllm


async def start_vllm(
    model: ModelSpec,
    spec: EngineSpec,
    device: Device,
    share: int = 1,
    task: Task = Task.generate,
    is_bulk: bool = False,
) -> Engine:
    """Starts a vLLM engine in this process.

    Args:
        model: the checkpoint and its adapters.
        spec: sizes and vLLM's own arguments.
        device: cpu or cuda, decided.
        share: engines that share this machine's cores; only the CPU cares.
        task: what its requests ask for.
        is_bulk: whether it is a job's, where as many sequences as may be are there at any time.

    Raises:
        EngineDead: when it does not start; the cause says why.
    """
    before = time.monotonic()
    inline = spec.process is EngineProcess.inline or (spec.process is EngineProcess.auto and device is Device.cpu)
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0" if inline else "1"
    stats = EngineStats()
    log, questions = EngineLog(), Questions(task, model.adapters)
    engine = InlineVllm(spec, stats, questions) if inline else SeparateVllm(spec, stats, questions, log)
    try:
        await engine.start(prepare_engine(model, spec, device, share, task, inline, is_bulk))
    except Exception as error:
        raise EngineDead(f"vLLM did not start: {log.cause(error)}") from error
    stats.start_s["total"] = time.monotonic() - before
    return engine
