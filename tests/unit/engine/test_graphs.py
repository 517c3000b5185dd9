"""Which steps an engine captures."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from conf.schema.engine import Device, EngineSpec
from conf.schema.model import ModelSpec
from conf.schema.task import Task
from serve.engine.vllm import arguments as module
from serve.engine.vllm import graphs
from serve.engine.vllm.arguments import engine_arguments, set_environment
from serve.engine.vllm.graphs import SIZES, UNCOMPILED, UNCOUNTED_FRACTION, with_graphs

MODEL = ModelSpec(path="/m")
LLAMA = {"architectures": ["LlamaForCausalLM"], "dtype": "bfloat16"}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_OFFLINE", "VLLM_NO_USAGE_STATS", "VLLM_USE_FLASHINFER_SAMPLER", UNCOMPILED):
        monkeypatch.setenv(name, "")  # so that what is set is undone
    monkeypatch.delenv(UNCOMPILED)


def is_uncompiled(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    config: dict[str, Any] = LLAMA,
    gpu: str | None = "NVIDIA L4",
    task: Task = Task.generate,
    spec: EngineSpec | None = None,
    **model: Any,
) -> bool:
    (tmp_path / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(module, "gpu_name", lambda: gpu)
    made, spec = ModelSpec(path=str(tmp_path), **model), spec or EngineSpec()
    set_environment(made, spec, Device.cuda, 1, task)
    arguments = engine_arguments(made, spec, Device.cuda, task)
    assert (arguments.get("gpu_memory_utilization") == UNCOUNTED_FRACTION) == (module.os.environ.get(UNCOMPILED) == "1")
    return module.os.environ.get(UNCOMPILED) == "1"


def test_dense_layers_of_16_bits_are_captured_without_compiling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert is_uncompiled(tmp_path, monkeypatch)


@pytest.mark.parametrize(
    "said",
    [
        {"gpu": None},
        {"task": Task.embed},
        {"dtype": "float32"},
        {"config": {**LLAMA, "dtype": "float32"}},
        {"config": {"architectures": ["LlamaForCausalLM"]}},
        {"config": {**LLAMA, "quantization_config": {"quant_method": "fp8"}}},
        {"config": {**LLAMA, "architectures": ["MixtralForCausalLM"]}},
        {"config": {**LLAMA, "architectures": "LlamaForCausalLM"}},
        {"config": {}},
        {"spec": EngineSpec(tensor_parallel_size=2)},
        {"spec": EngineSpec(pipeline_parallel_size=2)},
        {"spec": EngineSpec(vllm={"enforce_eager": True})},
        {"spec": EngineSpec(vllm={"hf_overrides": {"architectures": ["MixtralForCausalLM"]}})},
        {"spec": EngineSpec(vllm={"quantization": "fp8"})},
        {"spec": EngineSpec(vllm={"compilation_config": {"pass_config": {}}})},
        {"spec": EngineSpec(env={UNCOMPILED: "0"})},
    ],
)
def test_what_was_not_measured_or_is_said_is_compiled(
    said: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not is_uncompiled(tmp_path, monkeypatch, **said)


def test_older_vllm_compiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "version", lambda _: "0.31.2")
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    monkeypatch.setattr(module, "gpu_name", lambda: "NVIDIA L4")
    set_environment(ModelSpec(path=str(tmp_path)), EngineSpec(), Device.cuda, 1, Task.generate)
    assert UNCOMPILED not in module.os.environ


def test_the_users_own_environment_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(UNCOMPILED, "0")
    assert not is_uncompiled(tmp_path, monkeypatch)
    assert is_uncompiled(tmp_path, monkeypatch, gpu=None, spec=EngineSpec(env={UNCOMPILED: "1"}))


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
