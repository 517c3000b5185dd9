from __future__ import annotations

from pathlib import Path

import pytest

import serve.engine.hardware as hardware
from conf.errors import UserError
from conf.schema.engine import Device
from conf.schema.hardware import HardwareSpec, profiles
from serve.engine.hardware import find_hardware, gpu_name, match_profile


@pytest.mark.parametrize(
    "shown,profile",
    [
        ("NVIDIA H200", "h200"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100_pcie"),
        ("NVIDIA A100-SXM4-80GB", "a100_80gb"),
        ("NVIDIA A100-SXM4-40GB", "a100_40gb"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA A10G", "a10g"),
        ("NVIDIA B200", "b200"),
        ("NVIDIA A10", None),
        ("Tesla T4", None),
    ],
)
def test_a_gpu_is_known_by_the_drivers_name(shown: str, profile: str | None):
    assert match_profile(shown, profiles()) == profile


def test_the_driver_is_asked_without_loading_cuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "0000:1b:00.0").mkdir()
    (tmp_path / "0000:1b:00.0" / "information").write_text("Model: \t\t NVIDIA H200\nIRQ:   \t\t 0\n")
    monkeypatch.setattr(hardware, "DRIVER", tmp_path)
    assert gpu_name() == "NVIDIA H200"
    found = find_hardware(HardwareSpec(), Device.cuda, num_gpus=2)
    assert (found.name, found.num_devices, found.device) == ("h200", 2, Device.cuda)


def test_another_machines_devices_can_be_planned_for():
    found = find_hardware(HardwareSpec(name="l4", num_devices=4), Device.cpu, num_gpus=0)
    assert (found.name, found.num_devices, found.memory_bytes) == ("l4", 4, profiles()["l4"].memory_bytes)


def test_what_the_user_says_wins_over_the_profile():
    assert find_hardware(HardwareSpec(name="h200", memory_bytes=10), Device.cpu, 0).memory_bytes == 10


def test_without_a_gpu_it_is_this_machines_cpu():
    found = find_hardware(HardwareSpec(), Device.cpu, num_gpus=0)
    assert (found.name, found.device, found.num_devices) == ("cpu", Device.cpu, 1)
    assert found.memory_bytes > 0


def test_a_device_that_nobody_knows_is_described_or_refused():
    own = HardwareSpec(name="mine", memory_bytes=10, bytes_per_s=2.0, bf16_flop_per_s=3.0)
    found = find_hardware(own, Device.cpu, 0)
    assert found.flops_of("fp8") == found.flops_of("bf16") == 3.0
    with pytest.raises(UserError, match=r"^hardware.memory_bytes must be set: no profile is named 'h20'; did you mean"):
        find_hardware(HardwareSpec(name="h20"), Device.cpu, 0)


def test_only_what_is_positive_is_hardware():
    with pytest.raises(UserError, match=r"^hardware.num_devices must be > 0"):
        HardwareSpec(num_devices=0)


def ray_names() -> set[str]:
    import ray.util.accelerators.accelerators as known

    return {value for key, value in vars(known).items() if key.isupper()}


@pytest.mark.parametrize("name", sorted(profiles()))
def test_a_profile_says_what_ray_counts_the_device_as(name: str):
    profile = profiles()[name]
    if name == "cpu":
        assert (profile.resource, profile.accelerator) == ("CPU", None)
        return
    assert profile.accelerator in ray_names()
    assert profile.resource == ("TPU" if name.startswith("tpu") else "GPU")
    assert profile.interconnect
    assert profile.price_per_hour is None, "a price is shipped only with its source and date"


@pytest.mark.parametrize(
    "shown,name", [("NVIDIA A100-SXM4-80GB", "a100_80gb"), ("NVIDIA A10G", "a10g"), ("NVIDIA H100 PCIe", "h100_pcie")]
)
def test_a_gpu_has_the_name_that_ray_finds_by_the_drivers(shown: str, name: str):
    from ray._private.accelerators.nvidia_gpu import NvidiaGPUAcceleratorManager

    assert NvidiaGPUAcceleratorManager._gpu_name_to_accelerator_type(shown) == profiles()[name].accelerator


@pytest.mark.parametrize("name,generation", [("tpu_v5e", "v5litepod"), ("tpu_v6e", "v6e")])
def test_a_tpu_is_known_by_the_names_of_ray_and_of_gke(name: str, generation: str):
    from ray.autoscaler._private.kuberay.utils import gke_tpu_accelerator_to_generation

    profile = profiles()[name]
    assert profile.tpu_generation == generation
    assert gke_tpu_accelerator_to_generation[profile.gke_accelerator] == generation
    assert profile.accelerator == f"TPU-{generation.upper()}"
    found = find_hardware(HardwareSpec(name=name, num_devices=4), Device.cpu, 0)
    assert found.note is not None
    assert "not run on a TPU" in found.note
    assert found.flops_of("fp8") == found.flops_of("bf16") == profile.bf16_flop_per_s


def test_a_part_of_a_gpu_has_not_the_memory_of_its_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "gpu_name", lambda: "NVIDIA H100 80GB HBM3")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("NVIDIA_VISIBLE_DEVICES", raising=False)
    assert hardware.gpu_memory_bytes() == 84_930_000_000
    monkeypatch.setenv("NVIDIA_VISIBLE_DEVICES", "MIG-1c4a")
    assert hardware.gpu_memory_bytes() is None
