"""The devices that a plan counts with: this machine's, or those that the user names."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path

from omegaconf import OmegaConf

from conf.errors import UserError

PROFILES = Path(__file__).resolve().parent.parent / "hardware"
"""The folder of shipped profiles."""


@dataclass(kw_only=True, slots=True)
class HardwareSpec:
    """One device by its data sheet; a null is looked up by the device's name, or on this machine."""

    name: str = "auto"
    """A shipped profile, or a name of your own; auto: this machine's first GPU, else its CPU."""
    gpu_name: str | None = None
    """Words of the name under which the driver shows the device, by which auto finds the profile."""
    num_devices: int | None = None
    """Devices to plan for; null: those of this machine, and one where it has none of them."""
    memory_bytes: int | None = None
    """Memory of a device, as CUDA shows it."""
    bytes_per_s: float | None = None
    """Memory bandwidth of a device."""
    bf16_flop_per_s: float | None = None
    """Dense bfloat16 and float16 operations of a device."""
    fp8_flop_per_s: float | None = None
    """Dense FP8 operations; null where the device has none: then bfloat16 is counted with."""
    int8_flop_per_s: float | None = None
    """Dense INT8 operations; null where the device has none: then bfloat16 is counted with."""
    link_bytes_per_s: float | None = None
    """Bandwidth between two devices of a host, one way."""
    interconnect: str | None = None
    """What joins the devices of a host, or of a slice, in words."""
    price_per_hour: float | None = None
    """Price of one device for an hour, where cluster.price_per_hour is null. No profile has one: prices differ by
    provider, region and day."""
    resource: str | None = None
    """What Ray counts the devices as: CPU, GPU or TPU."""
    accelerator: str | None = None
    """Ray's name of the device (ray.util.accelerators): a node that has it holds accelerator_type:NAME."""
    gke_accelerator: str | None = None
    """How nodes with the device are labelled on GKE: cloud.google.com/gke-accelerator of a GPU, gke-tpu-accelerator of
    a TPU; null where GKE has none."""
    tpu_generation: str | None = None
    """How Ray and Google call the generation in a slice's name, such as v6e of v6e-16; null for no TPU."""
    note: str | None = None
    """A word that goes with every plan for the device."""

    def __post_init__(self) -> None:
        for key in fields(self):
            value = getattr(self, key.name)
            if isinstance(value, (int, float)) and not value > 0:
                raise UserError(f"hardware.{key.name} must be > 0 or null, got {value}")


@cache
def profiles() -> dict[str, HardwareSpec]:
    """Returns the shipped profiles by name."""
    found: dict[str, HardwareSpec] = {}
    for path in sorted(PROFILES.glob("*.yaml")):
        node = OmegaConf.to_container(OmegaConf.load(path))
        assert isinstance(node, dict)
        if path.stem != "auto":
            found[path.stem] = HardwareSpec(**{str(key): value for key, value in node.items()})
    return found
