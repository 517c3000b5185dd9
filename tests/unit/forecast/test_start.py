"""What a start takes, beside what was measured (docs/benchmarks/offline_shipped.json; seconds but for inference)."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from conf.schema.engine import Device, EngineSpec
from pipelines.forecast.start import CPU_START_S, start_seconds
from serve.engine.model_size import ModelSize, measure_model

LLAMA = {
    "model_type": "llama",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "torch_dtype": "bfloat16",
}
GPU, CPU = (SimpleNamespace(device=device) for device in (Device.cuda, Device.cpu))


def seconds(size: ModelSize, engines: int = 1, tp: int = 1, hardware: Any = GPU, **engine: Any) -> float:
    shape: Any = SimpleNamespace(tensor_parallel_size=tp, pipeline_parallel_size=1, engines_per_device=engines)
    return start_seconds(size, hardware, shape, EngineSpec(**engine))


@pytest.mark.parametrize(
    ("changes", "engines", "engine", "measured"),
    [
        ({}, 1, {}, [68.7, 59.2, 52.1]),
        ({"hidden_size": 896, "num_hidden_layers": 24, "intermediate_size": 4864}, 1, {}, [64.3]),
        ({"hidden_size": 5120, "num_hidden_layers": 40, "intermediate_size": 13824}, 1, {}, [54.3]),
        ({}, 1, {"kv_cache_bytes": 17179869184}, [39.7, 37.5, 37.2, 44.7]),
        ({"hidden_size": 2048, "num_hidden_layers": 22, "intermediate_size": 5632}, 2, {}, [31.9, 41.5, 35.4, 45.2]),
    ],
)
def test_a_start_takes_about_what_was_measured(
    changes: dict[str, int], engines: int, engine: dict[str, Any], measured: list[float]
):
    found = seconds(measure_model(LLAMA | changes), engines, **engine)
    middle = sorted(measured)[len(measured) // 2]
    assert found == pytest.approx(middle, rel=0.25)


def test_what_is_compiled_starts_later():
    size = measure_model(LLAMA)
    plain = seconds(size)
    assert pytest.approx(seconds(replace(size, arithmetic="fp8")), rel=0.1) == 112.0
    assert seconds(size, tp=2) > plain + 40
    assert seconds(replace(size, is_moe=True)) > plain + 40


def test_a_cpu_neither_measures_nor_compiles():
    assert seconds(replace(measure_model(LLAMA), is_moe=True), hardware=CPU) < CPU_START_S + 10
