"""Which number format a model is computed in."""

from __future__ import annotations

import pytest

from conf.schema.engine import Device, EngineSpec
from serve.engine import dtype as dtype_module
from serve.engine.dtype import bulk_memory_bytes, lacks_16_bits, served_dtype


@pytest.mark.parametrize(
    "flags, lacks",
    [
        ({"sse2", "avx2"}, True),
        ({"sse2", "avx2", "avx512f", "avx512_bf16"}, False),
        ({"asimd", "bf16"}, False),
        (set(), False),
    ],
)
def test_x86_without_avx512_has_no_16_bits(flags: set[str], lacks: bool) -> None:
    assert lacks_16_bits(frozenset(flags)) is lacks


@pytest.mark.parametrize(
    "dtype, device, served",
    [
        ("auto", Device.cpu, "float32"),
        ("bfloat16", Device.cpu, "bfloat16"),  # who asks for it gets it
        ("auto", Device.cuda, "auto"),
    ],
)
def test_on_such_a_cpu_auto_is_float32(
    dtype: str, device: Device, served: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dtype_module, "cpu_flags", lambda: frozenset({"sse2", "avx2"}))
    assert served_dtype(dtype, device) == served
    monkeypatch.setattr(dtype_module, "cpu_flags", lambda: frozenset({"sse2", "avx512f"}))
    assert served_dtype(dtype, device) == dtype


SMALL, LARGE, GIB = 3_500_000, 1_100_000_000, float(1 << 30)
AMD, ARM = {"sse2", "avx512f", "avx512_bf16", "AuthenticAMD"}, {"asimd", "bf16"}
PLAIN = {"sse2", "avx512f", "avx512_bf16", "GenuineIntel"}
TILES = PLAIN | {"amx_bf16"}


@pytest.mark.parametrize(
    "flags, dtype, device, parameters, bulk_bytes, served",
    [
        (PLAIN, "auto", Device.cpu, SMALL, 0.0, "float32"),
        (PLAIN, "auto", Device.cpu, LARGE, 0.0, "auto"),  # one sequence alone waits for the memory
        (PLAIN, "auto", Device.cpu, LARGE, 24 * GIB, "float32"),
        (PLAIN, "auto", Device.cpu, LARGE, 16 * GIB, "auto"),  # 4.1 GiB of weights are more than a quarter
        (PLAIN, "auto", Device.cpu, None, 24 * GIB, "auto"),  # quantized, or of no known kind
        (PLAIN, "bfloat16", Device.cpu, SMALL, 0.0, "bfloat16"),
        (PLAIN, "auto", Device.cuda, SMALL, 24 * GIB, "auto"),
        (TILES, "auto", Device.cpu, SMALL, 24 * GIB, "auto"),
        (AMD, "auto", Device.cpu, SMALL, 24 * GIB, "auto"),  # not measured
        (ARM, "auto", Device.cpu, SMALL, 24 * GIB, "auto"),
    ],
)
def test_without_tiles_what_is_computed_more_than_read_is_float32(
    flags: set[str],
    dtype: str,
    device: Device,
    parameters: int | None,
    bulk_bytes: float,
    served: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dtype_module, "cpu_flags", lambda: frozenset(flags))
    assert served_dtype(dtype, device, parameters, bulk_bytes) == served


@pytest.mark.parametrize(
    "spec, share",
    [
        (EngineSpec(num_replicas="1..4"), 0.25),  # however many there are: a job that goes on computes as it did
        (EngineSpec(max_num_seqs=16), 1.0),
        (EngineSpec(max_num_seqs=15), 0.0),
        (EngineSpec(kv_cache_bytes=1 << 30), 0.0),  # it would hold half of the tokens
        (EngineSpec(vllm={"kv_cache_memory_bytes": 1 << 30}), 0.0),
    ],
)
def test_what_a_jobs_engine_may_count_with(spec: EngineSpec, share: float) -> None:
    assert bulk_memory_bytes(spec, 16 << 30) == share * (16 << 30)
