"""What a start takes, beside what was measured (docs/benchmarks/offline_shipped.json; seconds but for inference)."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import ROOT

from conf.schema.batch import BatchJob
from conf.schema.data import DataSpec
from conf.schema.engine import Device, EngineSpec
from conf.schema.hardware import HardwareSpec
from conf.schema.model import ModelSpec
from pipelines.forecast.forecast import wish_of
from pipelines.forecast.start import CPU_START_S, start_seconds
from serve.engine.hardware import find_hardware
from serve.engine.model_size import measure_model

sys.path.insert(0, str(ROOT / "scripts"))
from bench_models import CONFIGS

LLAMA = CONFIGS["llama_8b"]
SMALLER = {"hidden_size": 2048, "num_hidden_layers": 22, "intermediate_size": 5632}
WHERE_COMPILED = 100.0


def seconds(folder: Path, changes: dict[str, Any], gpu: str = "h200", engines: int = 1, tp: int = 1, **engine: Any):
    config = LLAMA | changes
    (folder / "config.json").write_text(json.dumps(config))
    spec = EngineSpec(**engine)
    job = BatchJob(engine=spec, model=ModelSpec(path=str(folder)), data=DataSpec(input="x"))
    shape: Any = SimpleNamespace(tensor_parallel_size=tp, pipeline_parallel_size=1, engines_per_device=engines)
    device = Device.cpu if gpu == "cpu" else Device.cuda
    hardware = find_hardware(HardwareSpec(name=gpu), device, 0)
    return start_seconds(job, measure_model(config, arguments=spec.vllm), hardware, shape, wish_of(spec))


@pytest.mark.parametrize(
    ("changes", "engines", "engine", "measured"),
    [
        ({}, 1, {}, [68.7, 59.2, 52.1]),
        ({"hidden_size": 896, "num_hidden_layers": 24, "intermediate_size": 4864}, 1, {}, [64.3]),
        ({"hidden_size": 5120, "num_hidden_layers": 40, "intermediate_size": 13824}, 1, {}, [54.3]),
        ({}, 1, {"kv_cache_bytes": 1 << 34}, [39.7, 37.5, 44.7]),
        ({}, 1, {"vllm": {"kv_cache_memory_bytes": 1 << 34}}, [37.2]),
        (SMALLER, 2, {"kv_cache_bytes": 40_000_000_000}, [31.9, 41.5, 35.4, 45.2]),
        ({}, 1, {"env": {"VLLM_USE_BREAKABLE_CUDAGRAPH": "0"}}, [112.5]),
    ],
)
def test_a_start_takes_about_what_was_measured(
    tmp_path: Path, changes: dict[str, Any], engines: int, engine: dict[str, Any], measured: list[float]
):
    middle = sorted(measured)[len(measured) // 2]
    assert seconds(tmp_path, changes, engines=engines, **engine) == pytest.approx(middle, rel=0.25)


@pytest.mark.parametrize(
    ("changes", "more"),
    [
        ({}, {"gpu": "l4"}),  # no room for the graphs
        ({}, {"tp": 2}),
        ({"architectures": ["Gemma2ForCausalLM"]}, {}),
        ({"dtype": "float32"}, {}),
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, {}),
        ({}, {"gpu": "tpu_v6e"}),
    ],
)
def test_what_is_compiled_starts_later(tmp_path: Path, changes: dict[str, Any], more: dict[str, Any]):
    assert seconds(tmp_path, changes, **more) > WHERE_COMPILED
    assert seconds(tmp_path, changes, vllm={"enforce_eager": True}, **more) < WHERE_COMPILED


def test_a_cpu_neither_measures_nor_compiles(tmp_path: Path):
    assert seconds(tmp_path, {"architectures": ["Gemma2ForCausalLM"]}, gpu="cpu") < CPU_START_S + 10
