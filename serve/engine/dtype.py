"""Which number format a model is computed in."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from conf.schema.engine import Device


def served_dtype(dtype: str, device: Device) -> str:
    """Returns `model.dtype` as vLLM is given it.

    Where it is ``auto`` that is the checkpoint's own, but float32 on x86 CPUs without AVX-512: they compute 16-bit ones
    by way of others, which is slow (docs/decisions/0007-float32-without-avx512.md).

    Args:
        dtype: as the user set it.
        device: decided.
    """
    return "float32" if dtype == "auto" and device is Device.cpu and lacks_16_bits(cpu_flags()) else dtype


def lacks_16_bits(flags: frozenset[str]) -> bool:
    """Returns whether an x86 CPU computes 16-bit floats only by way of others.

    Args:
        flags: of /proc/cpuinfo; empty where the CPU is none of x86.
    """
    return "sse2" in flags and "avx512f" not in flags


@cache
def cpu_flags() -> frozenset[str]:
    """Returns this machine's CPU flags; none where the system does not list them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), []))
