"""The machine that an engine runs on, and the memory that it takes there."""

from __future__ import annotations

import os
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from conf.schema.engine import Device
from serve.engine.hardware import gpu_name, host_memory_bytes


def describe(device: Device) -> dict[str, Any]:
    """Returns what this machine is, as far as speed depends on it."""
    found: dict[str, Any] = {"cpu": cpu_name(), "cores": len(os.sched_getaffinity(0)), "memory": host_memory_bytes()}
    if device is Device.cuda:
        found |= {"gpu": gpu_name() or "unknown", "gpus": len(gpu_used_bytes())}
    return found


def cpu_name() -> str:
    """Returns the processor's name as the kernel has it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return os.uname().machine


def resident_bytes(pid: int | None = None) -> int:
    """Returns the memory of a process and all below it; what they share is counted once.

    Args:
        pid: the process; this one where null.
    """
    top, total = psutil.Process(pid), 0
    for process in (top, *top.children(recursive=True)):
        try:
            total += process.memory_full_info().pss
        except psutil.AccessDenied:
            with suppress(psutil.Error):
                total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


def gpu_used_bytes() -> list[int]:
    """Returns what is in use on each visible GPU, whoever takes it; nothing where there is none."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    query += [f"--id={visible}"] if visible else []
    try:
        shown = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
        return [int(line) << 20 for line in shown.split()]
    except (OSError, ValueError, subprocess.SubprocessError):
        return []
