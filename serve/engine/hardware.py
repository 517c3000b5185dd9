"""The devices that are counted with: a profile by name, or by what this machine's driver says."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

from conf.errors import UserError, nearest
from conf.schema.engine import Device
from conf.schema.hardware import HardwareSpec, profiles
from serve.engine.dtype import cpu_flags, lacks_tiles

DRIVER = Path("/proc/driver/nvidia/gpus")
CPU_FLOP_PER_S = 100e9
"""Of a core: what the demo's model reaches on an AMD EPYC with AVX-512 and bf16 (docs/decisions/0004)."""
TILELESS_RATIO = 1.3
"""Of an Intel CPU without AMX: float32's operations over those of 16 bits, 1.27 to 1.43 (docs/decisions/0027)."""
CPU_BYTES_PER_S = 20e9
"""Of a host's memory, shared by its cores: one channel and a half of DDR4; servers have more, small machines less."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Hardware:
    """Devices of one kind."""

    name: str
    device: Device
    """cuda or cpu; a TPU counts as cuda."""
    num_devices: int
    memory_bytes: int
    bytes_per_s: float
    flop_per_s: Mapping[str, float]
    """Dense operations by arithmetic: bf16, fp8, int8, fp32."""
    link_bytes_per_s: float
    cores: int
    """Of this machine; of use on CPU alone."""
    is_shared: bool = True
    """Whether several engines may be on one device: a TPU's chip has one process."""
    price_per_hour: float | None = None
    """Of one device, where the profile or the user says it."""
    note: str | None = None
    """A word that goes with every plan for them."""

    def flops_of(self, arithmetic: str) -> float:
        """Returns operations a second; what the device does not know it does in bfloat16."""
        return self.flop_per_s.get(arithmetic) or self.flop_per_s["bf16"]


def find_hardware(spec: HardwareSpec, device: Device, num_gpus: int) -> Hardware:
    """Completes what the user said with a profile and what this machine shows.

    Args:
        spec: the node `hardware`.
        device: where the engine would run on this machine: cuda or cpu; counts for ``auto`` alone.
        num_gpus: GPUs of this machine.

    Raises:
        UserError: when a GPU has no profile and the user has not described it.
    """
    name = spec.name
    if name == "auto":
        name = "cpu" if device is Device.cpu else ""
        shown = gpu_name() if device is Device.cuda else None
        if shown is not None:
            name = match_profile(shown, profiles()) or shown
        elif not name:
            name = "gpu"
    known = profiles()
    full = _filled(replace(spec, name=name), known.get(name))
    if name == "cpu":
        cores = len(os.sched_getaffinity(0))
        flops = full.bf16_flop_per_s or cores * CPU_FLOP_PER_S
        return Hardware(
            name="cpu",
            device=Device.cpu,
            num_devices=full.num_devices or 1,
            memory_bytes=full.memory_bytes or host_memory_bytes(),
            bytes_per_s=full.bytes_per_s or CPU_BYTES_PER_S,
            flop_per_s={"bf16": flops, "fp32": flops * (TILELESS_RATIO if lacks_tiles(cpu_flags()) else 0.5)},
            link_bytes_per_s=full.link_bytes_per_s or CPU_BYTES_PER_S,
            cores=cores,
            price_per_hour=full.price_per_hour,
            note=full.note,
        )
    for key in ("memory_bytes", "bytes_per_s", "bf16_flop_per_s"):
        if getattr(full, key) is None:
            hint = f"{nearest(name, known)} (there are {', '.join(known)})"
            raise UserError(f"hardware.{key} must be set: no profile is named '{name}'{hint}")
    assert full.memory_bytes is not None
    assert full.bytes_per_s is not None
    assert full.bf16_flop_per_s is not None
    flops = {"bf16": full.bf16_flop_per_s, "fp32": full.bf16_flop_per_s / 2}
    flops |= {"fp8": full.fp8_flop_per_s or 0.0, "int8": full.int8_flop_per_s or 0.0}
    return Hardware(
        name=name,
        device=Device.cuda,
        num_devices=full.num_devices or (num_gpus if spec.name == "auto" else 0) or 1,
        memory_bytes=full.memory_bytes,
        bytes_per_s=full.bytes_per_s,
        flop_per_s=flops,
        link_bytes_per_s=full.link_bytes_per_s or 25e9,
        cores=len(os.sched_getaffinity(0)),
        is_shared=full.resource != "TPU",
        price_per_hour=full.price_per_hour,
        note=full.note,
    )


def _filled(spec: HardwareSpec, profile: HardwareSpec | None) -> HardwareSpec:
    if profile is None:
        return spec
    own = {key.name: getattr(spec, key.name) for key in fields(spec) if getattr(spec, key.name) is not None}
    return replace(profile, **own)


def gpu_name() -> str | None:
    """Returns the name of this machine's first GPU without loading CUDA; null where nobody says it."""
    for path in sorted(DRIVER.glob("*/information")):
        try:
            found = re.search(r"^Model:\s*(.+)$", path.read_text(), re.MULTILINE)
        except OSError:
            continue
        if found:
            return found[1].strip()
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        shown = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return None
    return shown[0].strip() if shown else None


def gpu_memory_bytes() -> int | None:
    """Returns the memory of this machine's first GPU by its profile; null where it has none, or is divided (MIG)."""
    seen = "".join(os.environ.get(name, "") for name in ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES"))
    shown = None if "MIG" in seen else gpu_name()
    known = profiles()
    name = match_profile(shown, known) if shown else None
    return known[name].memory_bytes if name else None


def match_profile(shown: str, known: Mapping[str, HardwareSpec]) -> str | None:
    """Returns the profile of a GPU by its name: of those whose every word is in it, the one with the most words."""
    words = set(re.split(r"[\s\-]+", shown.lower()))
    fits = [(len(p.gpu_name.split()), name) for name, p in known.items() if p.gpu_name and _words(p.gpu_name) <= words]
    return max(fits)[1] if fits else None


def _words(name: str) -> set[str]:
    return set(name.lower().split())


def host_memory_bytes() -> int:
    """Returns this machine's memory, or what its container may use of it."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            return min(total, int(Path(path).read_text()))
        except (OSError, ValueError):
            continue
    return total
