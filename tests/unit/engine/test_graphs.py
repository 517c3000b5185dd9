"""Which steps an engine captures."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conf.schema.engine import Device, EngineSpec
from conf.schema.model import ModelSpec
from conf.schema.task import Task
from serve.engine.room import GRAPHED_FRACTION
from serve.engine.vllm import arguments as module
from serve.engine.vllm import graphs
from serve.engine.vllm.arguments import prepare_engine
from serve.engine.vllm.graphs import SIZES, UNCOMPILED

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "dtype": "bfloat16",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
}
H100, L4 = 84_930_000_000, 23_650_000_000


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_OFFLINE", "VLLM_NO_USAGE_STATS", "VLLM_USE_FLASHINFER_SAMPLER", UNCOMPILED):
        monkeypatch.setenv(name, "")  # so that what is set is undone
    monkeypatch.delenv(UNCOMPILED)


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Returns what an engine would be started with: its arguments, and `is_uncompiled`."""

    def start(
        config: dict[str, Any] = LLAMA,
        memory: int | None = H100,
        task: Task = Task.generate,
        device: Device = Device.cuda,
        spec: EngineSpec | None = None,
        **model: Any,
    ) -> dict[str, Any]:
        (tmp_path / "config.json").write_text(json.dumps(config))
        monkeypatch.setattr(module, "gpu_memory_bytes", lambda: memory)
        made, spec = ModelSpec(path=str(tmp_path), **model), spec or EngineSpec()
        arguments = prepare_engine(made, spec, device, 1, task)
        return {**arguments, "is_uncompiled": os.environ.get(UNCOMPILED) == "1"}

    return start


Started = Callable[..., dict[str, Any]]


def test_a_step_is_padded_by_an_eighth_at_most() -> None:
    assert list(SIZES) == sorted(set(SIZES))
    assert SIZES[-1] == 4096
    for smaller, larger in itertools.pairwise(SIZES):
        assert larger - smaller <= max(8, smaller / 8)


def test_dense_layers_of_16_bits_are_captured_without_compiling(started: Started) -> None:
    made = started()
    assert made["is_uncompiled"]
    assert made["compilation_config"] == {"cudagraph_capture_sizes": list(SIZES)}
    assert made["gpu_memory_utilization"] == GRAPHED_FRACTION


@pytest.mark.parametrize(
    "said",
    [
        {"dtype": "float32"},
        {"config": {**LLAMA, "dtype": "float32"}},
        {"config": {key: value for key, value in LLAMA.items() if key != "dtype"}},
        {"config": {**LLAMA, "quantization_config": {"quant_method": "fp8"}}},
        {"config": {**LLAMA, "architectures": ["MixtralForCausalLM"]}},
        {"config": {**LLAMA, "architectures": "LlamaForCausalLM"}},
        {"spec": EngineSpec(tensor_parallel_size=2)},
        {"spec": EngineSpec(pipeline_parallel_size=2)},
        {"spec": EngineSpec(vllm={"hf_overrides": {"architectures": ["MixtralForCausalLM"]}})},
        {"spec": EngineSpec(vllm={"quantization": "fp8"})},
        {"spec": EngineSpec(vllm={"compilation_config": {"pass_config": {}}})},
        {"spec": EngineSpec(env={UNCOMPILED: "0"})},
    ],
)
def test_what_was_not_measured_is_compiled_and_captured(said: dict[str, Any], started: Started) -> None:
    made = started(**said)
    assert not made["is_uncompiled"]
    assert made["compilation_config"]["cudagraph_capture_sizes"] == list(SIZES)
    assert "gpu_memory_utilization" not in made


@pytest.mark.parametrize(
    "said",
    [
        {"device": Device.cpu},
        {"task": Task.embed},
        {"memory": None},
        {"memory": L4},
        {"config": {}},
        {"config": {**LLAMA, "num_attention_heads": 0, "hidden_size": "wide"}},
        {"memory": H100, "config": {**LLAMA, "num_hidden_layers": 130}},
        {"spec": EngineSpec(engines_per_device=2, kv_cache_bytes=16 << 30)},
        {"spec": EngineSpec(kv_cache_bytes=60 << 30)},
        {"spec": EngineSpec(vllm={"enforce_eager": True})},
        {"spec": EngineSpec(vllm={"gpu_memory_utilization": 0.3})},
    ],
)
def test_without_room_or_use_vllms_own_graphs_stay(said: dict[str, Any], started: Started) -> None:
    made = started(**said)
    assert not made["is_uncompiled"]
    assert "compilation_config" not in made
    assert made.get("gpu_memory_utilization") != GRAPHED_FRACTION


def test_fewer_bits_that_stand_beside_the_config_are_compiled(started: Started, tmp_path: Path) -> None:
    (tmp_path / "hf_quant_config.json").write_text("{}")
    assert not started()["is_uncompiled"]


def test_the_users_own_environment_wins(started: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(UNCOMPILED, "0")
    assert not started()["is_uncompiled"]
    made = started({**LLAMA, "architectures": ["MixtralForCausalLM"]}, spec=EngineSpec(env={UNCOMPILED: "1"}))
    assert made["is_uncompiled"]
    assert made["gpu_memory_utilization"] == GRAPHED_FRACTION


@pytest.mark.parametrize(
    "said",
    [
        {"cudagraph_capture_sizes": [1, 2]},
        {"max_cudagraph_capture_size": 64},
        {"compilation_config": {"cudagraph_mode": "NONE"}},
        {"compilation_config": {"mode": 0}},
        {"compilation_config": 0},
        {"compilation_config": {"max_cudagraph_capture_size": 64}},
    ],
)
def test_what_the_user_says_of_graphs_is_left_alone(said: dict[str, Any], started: Started) -> None:
    made = started(spec=EngineSpec(vllm=said))
    assert made.get("compilation_config") == said.get("compilation_config")
    assert not made["is_uncompiled"]


def test_what_else_the_user_says_of_compiling_stays(started: Started) -> None:
    said = {"pass_config": {"fuse_allreduce_rms": False}}
    made = started(spec=EngineSpec(vllm={"compilation_config": said}))
    assert made["compilation_config"] == {**said, "cudagraph_capture_sizes": list(SIZES)}


def test_adapters_keep_vllms_own_sizes(started: Started, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "adapter_config.json").write_text('{"r": 8}')
    assert "compilation_config" not in started(adapters={"a": str(tmp_path / "a")})


@pytest.mark.parametrize(
    "installed, said, fraction",
    [
        ("0.26.0", {}, GRAPHED_FRACTION),
        ("0.26.0", {"gpu_memory_utilization": 0.5}, 0.5),
        ("0.26.0", {"kv_cache_memory_bytes": 1 << 30}, None),
        ("0.32.0", {"quantization": "fp8"}, None),
        ("0.32.0", {"gpu_memory_utilization": 0.5}, 0.5),
        ("1.0", {"kv_cache_memory_bytes": 1 << 30}, None),
    ],
)
def test_graphs_that_vllm_does_not_count_get_room(
    installed: str, said: dict[str, Any], fraction: float | None, started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "version", lambda _: installed)
    made = started(spec=EngineSpec(vllm=said))
    assert made.get("gpu_memory_utilization") == fraction
    assert made["is_uncompiled"] == (installed != "0.26.0" and "quantization" not in said)
