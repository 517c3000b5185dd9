"""What a forecast is for: the devices and the model of a job."""

from __future__ import annotations

from cluster.connect import local_devices
from conf.errors import UserError
from conf.schema.batch import BatchJob
from conf.schema.engine import Device, EngineKind
from pipelines.batch.plan import Plan
from serve.engine.capability import overridden
from serve.engine.checkpoint import read_model_config
from serve.engine.dtype import bulk_memory_bytes, served_dtype
from serve.engine.hardware import Hardware, find_hardware
from serve.engine.model_size import ModelSize, measure_model, plain_parameters


def hardware_of(job: BatchJob) -> Hardware:
    """Returns the devices that a job is planned for.

    Raises:
        UserError: when engine.device=cuda and neither `hardware` nor this machine says which GPU.
    """
    gpus = local_devices()
    device = job.engine.device
    if device is Device.auto or job.engine.kind is EngineKind.fake:
        device = Device.cuda if gpus and job.engine.kind is EngineKind.vllm else Device.cpu
    if device is Device.cuda and not gpus and job.hardware.name == "auto":
        raise UserError("engine.device=cuda, but this machine shows no NVIDIA GPU: say which with hardware=NAME")
    return find_hardware(job.hardware, device, gpus)


def size_of(plan: Plan, hardware: Hardware) -> ModelSize:
    """Returns the size of a job's model on a device."""
    job = plan.job
    config = overridden(read_model_config(job.model), job.engine.vllm)
    memory = bulk_memory_bytes(job.engine, hardware.memory_bytes)
    dtype = served_dtype(job.model.dtype, hardware.device, plain_parameters(config, job.engine.vllm), memory)
    return measure_model(config, job.model.path, dtype, job.engine.vllm, hardware.device.value)
