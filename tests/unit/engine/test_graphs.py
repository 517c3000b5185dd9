"""Which steps an engine captures."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from conf.schema.engine import Device, EngineSpec
from conf.schema.model import ModelSpec
from conf.schema.task import Task
from serve.engine.vllm import graphs
from serve.engine.vllm.arguments import engine_arguments
from serve.engine.vllm.graphs import SIZES, UNCOUNTED_FRACTION, with_graphs

MODEL = ModelSpec(path="/m")


def compilation(task: Task = Task.generate, device: Device = Device.cuda, **said: Any) -> dict[str, Any] | None:
    return engine_arguments(MODEL, EngineSpec(vllm=said), device, task).get("compilation_config")


def test_a_step_is_padded_by_an_eighth_at_most() -> None:
    assert list(SIZES) == sorted(set(SIZES))
    assert SIZES[-1] == 4096
    for smaller, larger in itertools.pairwise(SIZES):
        assert larger - smaller <= max(8, smaller / 8)


def test_steps_that_mix_prefill_and_decode_are_captured_on_a_gpu() -> None:
    assert compilation() == {"cudagraph_capture_sizes": list(SIZES)}
    assert compilation(device=Device.cpu) is None
    assert compilation(Task.embed) is None


@pytest.mark.parametrize(
    "said",
    [
        {"enforce_eager": True},
        {"cudagraph_capture_sizes": [1, 2]},
        {"max_cudagraph_capture_size": 64},
        {"compilation_config": {"cudagraph_mode": "NONE"}},
        {"compilation_config": {"mode": 0}},
        {"compilation_config": 0},
        {"compilation_config": {"max_cudagraph_capture_size": 64}},
    ],
)
def test_what_the_user_says_of_graphs_is_left_alone(said: dict[str, Any]) -> None:
    assert compilation(**said) == said.get("compilation_config")


def test_what_else_the_user_says_of_compiling_stays() -> None:
    said = {"pass_config": {"fuse_allreduce_rms": False}}
    assert compilation(compilation_config=said) == {**said, "cudagraph_capture_sizes": list(SIZES)}


def test_adapters_keep_vllms_own_sizes() -> None:
    arguments = {"runner": "generate", "enable_lora": True}
    assert with_graphs(arguments) == arguments


@pytest.mark.parametrize(
    "installed, said, fraction",
    [
        ("0.26.0", {}, UNCOUNTED_FRACTION),
        ("0.26.0", {"gpu_memory_utilization": 0.5}, 0.5),
        ("0.26.0", {"kv_cache_memory_bytes": 1 << 30}, None),
        ("0.32.0", {}, None),
        ("1.0", {}, None),
    ],
)
def test_graphs_that_vllm_does_not_count_get_room(
    installed: str, said: dict[str, Any], fraction: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "version", lambda _: installed)
    arguments = engine_arguments(MODEL, EngineSpec(vllm=said), Device.cuda)
    assert arguments.get("gpu_memory_utilization") == fraction
