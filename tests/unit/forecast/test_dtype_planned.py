"""The number format that a plan counts with is the one that a job's engine gets."""

from __future__ import annotations

import pytest

from conf.entry import compose
from conf.schema.engine import Device
from conf.schema.task import Task
from pipelines.batch.plan import make_plan
from pipelines.forecast.target import hardware_of, size_of
from serve.engine import dtype, hardware
from serve.engine.room import cpu_kv_bytes
from serve.engine.vllm import arguments
from serve.engine.vllm.arguments import prepare_engine

XEON = frozenset({"sse2", "avx512f", "avx512_bf16", dtype.INTEL})
KEPT = (
    "HF_HUB_OFFLINE",
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "VLLM_CPU_OMP_THREADS_BIND",
    "VLLM_NO_USAGE_STATS",
    "VLLM_USE_FLASHINFER_SAMPLER",
)


@pytest.fixture(autouse=True)
def _xeon(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in KEPT:
        monkeypatch.setenv(name, "")  # so that what is set is undone
        monkeypatch.delenv(name)
    monkeypatch.setattr(dtype, "cpu_flags", lambda: XEON)
    monkeypatch.setattr(hardware, "cpu_flags", lambda: XEON)
    monkeypatch.setattr(hardware, "host_memory_bytes", lambda: 16 << 30)
    monkeypatch.setattr(arguments, "host_memory_bytes", lambda: 16 << 30)


LARGER = "engine.vllm.hf_overrides={hidden_size: 512, num_hidden_layers: 16, intermediate_size: 1408}"


@pytest.mark.parametrize(
    "words, is_float32",
    [
        ((), True),
        ((LARGER, "engine.vllm.load_format=dummy"), True),
        ((LARGER, "engine.vllm.load_format=dummy", "engine.max_num_seqs=4"), False),
        ((LARGER, "engine.vllm.load_format=dummy", "engine.kv_cache_bytes=1073741824"), False),
        (("model.dtype=bfloat16",), False),
        (("engine.vllm.kv_cache_dtype=fp8",), False),
        (("engine.num_replicas=1..4", "engine.max_num_seqs=4"), True),  # small, whatever holds it
    ],
)
def test_a_plan_counts_with_the_format_that_engines_get(words: tuple[str, ...], is_float32: bool):
    job = compose("batch", "model=demo", "data=tickets", "engine=cpu", *words)
    plan = make_plan(job)
    size = size_of(plan, hardware_of(job))
    made = prepare_engine(plan.job.model, plan.job.engine, Device.cpu, 1, Task.generate, True, is_bulk=True)
    assert (made["dtype"] == "float32") is (size.arithmetic == "fp32") is is_float32
    # a cache of as many tokens
    assert made["kv_cache_memory_bytes"] == (2 if is_float32 and LARGER in words else 1) << 30


def test_a_plan_and_an_engine_give_a_model_of_no_known_kind_the_same_cache():
    unknown = LARGER.replace("{", "{model_type: unheard_of, ")
    words = ("model.dtype=float32", "engine.vllm.load_format=dummy", unknown)
    job = compose("batch", "model=demo", "data=tickets", "engine=cpu", *words)
    plan = make_plan(job)
    made = prepare_engine(plan.job.model, plan.job.engine, Device.cpu, 1, Task.generate, True, is_bulk=True)
    assert cpu_kv_bytes(size_of(plan, hardware_of(job))) == made["kv_cache_memory_bytes"] == 2 << 30


@pytest.mark.parametrize(
    "words, kv_bytes",
    [
        (("engine.kv_cache_bytes=50000000",), 50_000_000),
        (("engine.kv_cache_bytes=50000000", "engine.vllm.kv_cache_memory_bytes=60000000"), 60_000_000),
    ],
)
def test_an_engine_on_cpu_gets_the_cache_that_was_asked_for(words: tuple[str, ...], kv_bytes: int):
    job = compose("batch", "model=demo", "data=tickets", "engine=cpu", *words)
    made = prepare_engine(job.model, job.engine, Device.cpu, 1, Task.generate)
    assert made["kv_cache_memory_bytes"] == kv_bytes  # not whole GiB


def test_a_cpu_without_tiles_multiplies_32_bits_faster(monkeypatch: pytest.MonkeyPatch):
    job = compose("batch", "model=demo", "data=tickets", "engine=cpu")
    flops = hardware_of(job).flop_per_s
    assert flops["fp32"] == hardware.TILELESS_RATIO * flops["bf16"]
    monkeypatch.setattr(hardware, "cpu_flags", lambda: XEON | {"amx_bf16"})
    assert hardware_of(job).flop_per_s["fp32"] == flops["bf16"] / 2
