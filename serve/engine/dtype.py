"""Which number format a model is computed in."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from conf.schema.engine import Device, EngineSpec

INTEL = "GenuineIntel"
"""The vendor_id of /proc/cpuinfo."""
SMALL_BYTES = 64 << 20
"""Weights that stay in a CPU's caches: reading them costs nothing, however many bits they have."""
BULK_FRACTION = 0.25
"""Of the memory, what the weights of a job's engines may take where fewer bytes would do."""
MANY_SEQS = 16
"""Sequences in a step from which computing them takes longer than reading the weights: the fewest measured."""


def served_dtype(dtype: str, device: Device, plain_parameters: int | None = None, memory_bytes: float = 0.0) -> str:
    """Returns `model.dtype` as vLLM is given it.

    Where it is ``auto`` that is the checkpoint's own, but float32 on x86 CPUs without AVX-512, which compute 16-bit
    numbers by way of others (docs/decisions/0007-float32-without-avx512.md), and, where there are no tiles (AMX)
    either, for models that compute more than they read (docs/decisions/0027-float32-without-amx.md).

    Args:
        dtype: as the user set it.
        device: decided.
        plain_parameters: of a dense model whose weights are not quantized; null for others, whose kernels may want
            their own format.
        memory_bytes: of `bulk_memory_bytes`, where the engine is a job's; 0 where a step may have one sequence.
    """
    if dtype != "auto" or device is not Device.cpu:
        return dtype
    flags = cpu_flags()
    if lacks_16_bits(flags):
        return "float32"
    most = max(SMALL_BYTES, BULK_FRACTION * memory_bytes)
    is_faster = lacks_tiles(flags) and plain_parameters is not None and 4 * plain_parameters <= most
    return "float32" if is_faster else dtype


def bulk_memory_bytes(spec: EngineSpec, memory_bytes: int) -> float:
    """Returns the memory that each of a job's engines on a machine may count with, the largest pool assumed.

    Args:
        spec: the engine's.
        memory_bytes: of the machine.

    Returns:
        0 where steps hold few sequences, and where the user has said what the KV cache takes: it would hold half.
    """
    has_said = spec.kv_cache_bytes is not None or "kv_cache_memory_bytes" in spec.vllm
    is_bulk = spec.max_num_seqs >= MANY_SEQS and not has_said
    return memory_bytes / spec.max_replicas if is_bulk else 0.0


def lacks_16_bits(flags: frozenset[str]) -> bool:
    """Returns whether an x86 CPU computes 16-bit floats only by way of others.

    Args:
        flags: of /proc/cpuinfo; empty where the CPU is none of x86.
    """
    return "sse2" in flags and "avx512f" not in flags


def lacks_tiles(flags: frozenset[str]) -> bool:
    """Returns whether an Intel CPU multiplies matrices of 16-bit floats no faster than others.

    Args:
        flags: of `cpu_flags`. Others' were not measured; an AMD EPYC with AVX-512 did well with them.
    """
    return INTEL in flags and "amx_bf16" not in flags


@cache
def cpu_flags() -> frozenset[str]:
    """Returns this machine's CPU flags, its vendor among them; none where the system does not list them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    said = [next((line for line in lines if line.startswith(name)), "") for name in ("flags", "vendor_id")]
    return frozenset(word for line in said for word in line.partition(":")[2].split())
