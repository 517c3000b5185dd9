"""How many tokens a step has where nobody says: vLLM chooses by whose engine it believes to start."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from conf.schema.engine import Device, EngineSpec
from conf.schema.model import ModelSpec
from conf.schema.task import Task
from serve.engine.errors import EngineDead
from serve.engine.vllm import api, llm

MODEL = ModelSpec(path="/m")
GB = 1 << 30


async def context_of(monkeypatch: pytest.MonkeyPatch, has_short_steps: bool) -> Any:
    """Returns the usage context that vLLM is started with."""
    from vllm.v1.engine.async_llm import AsyncLLM

    seen: list[Any] = []

    def from_engine_args(arguments: Any, usage_context: Any) -> Any:
        seen.append(usage_context)
        raise RuntimeError("no engine here")

    monkeypatch.setattr(AsyncLLM, "from_engine_args", from_engine_args)
    monkeypatch.setattr(llm, "with_objects", lambda arguments: {"model": "/m"})
    arguments = {"tensor_parallel_size": 2, "pipeline_parallel_size": 1}
    with pytest.raises(RuntimeError, match="no engine here"):
        await llm.start_llm(arguments, has_short_steps)
    return seen[0]


@pytest.mark.parametrize("has_short_steps, tokens", [(True, 2048), (False, 8192)])
async def test_a_large_gpus_steps_are_short_for_who_waits(
    has_short_steps: bool, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.config import SchedulerConfig
    from vllm.engine import arg_utils

    context = await context_of(monkeypatch, has_short_steps)
    h200 = SimpleNamespace(
        get_device_total_memory=lambda: 140 * GB,
        get_device_name=lambda: "NVIDIA H200",
        is_tpu=lambda: False,
        is_cpu=lambda: False,
    )
    monkeypatch.setattr(arg_utils, "current_platform", h200)
    steps, _ = arg_utils.EngineArgs.get_batch_defaults(1)
    assert steps.get(context, SchedulerConfig.DEFAULT_MAX_NUM_BATCHED_TOKENS) == tokens


@pytest.mark.parametrize("task, is_short", [(Task.generate, True), (Task.embed, False)])
async def test_a_service_that_answers_word_by_word_has_short_steps(
    task: Task, is_short: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    async def start_llm(arguments: Any, has_short_steps: bool = False) -> Any:
        asked.append(has_short_steps)
        raise RuntimeError("no engine here")

    monkeypatch.setattr(api, "start_llm", start_llm)
    monkeypatch.setattr(api, "prepare_engine", lambda *words: {})
    monkeypatch.setattr(api, "prepare_core_process", lambda: None)
    with pytest.raises(EngineDead, match="no engine here"):
        await api.start_api(MODEL, EngineSpec(), Device.cpu, 1, task, {}, ())
    assert asked == [is_short]
