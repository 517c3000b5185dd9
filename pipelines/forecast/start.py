"""What the start of a job takes, where no job before has taught it."""

from __future__ import annotations

from conf.schema.batch import BatchJob
from conf.schema.engine import Device
from serve.engine.capability import overridden
from serve.engine.checkpoint import plain_config
from serve.engine.hardware import Hardware
from serve.engine.model_size import ModelSize
from serve.engine.room import Wish, holds_graphs
from serve.engine.shape import Shape
from serve.engine.vllm.arguments import engine_arguments
from serve.engine.vllm.graphs import UNCOMPILED, needs_no_compiling

GPU_START_S = 35.0
"""On a GPU, from the command to the first answer: Ray, the import of vLLM, its load, graphs. With 1.1 B and 8 B on H200
32 to 45 s (docs/benchmarks/offline_shipped.json)."""
MEASURING_S = 20.0
"""Where vLLM is to find out how large the KV cache may be: it captures its graphs for that too. 52 to 69 s with 8 B."""
COMPILING_S = 50.0
"""Where a step is compiled: 112 s with 8 B."""
S_PER_GB = 0.5
"""Each GB of weights, read from a local disk. Assumed: those measured had none."""
CPU_START_S = 25.0
"""On two CPU cores: docs/benchmarks/batch_cpu.md."""


def start_seconds(job: BatchJob, size: ModelSize, hardware: Hardware, shape: Shape, wish: Wish) -> float:
    """Returns the seconds of a start.

    Args:
        job: what is asked.
        size: of the model.
        hardware: the devices.
        shape: how engines lie on them.
        wish: what of the shape the user has set.
    """
    weight_bytes = size.device_weight_bytes(shape.tensor_parallel_size, shape.pipeline_parallel_size)
    reading = S_PER_GB * weight_bytes / 1e9
    if hardware.device is Device.cpu:
        return CPU_START_S + reading
    is_sized = wish.kv_cache_bytes is not None or shape.engines_per_device > 1
    is_compiled = _compiles(job, weight_bytes, hardware, shape, wish)
    return GPU_START_S + MEASURING_S * (not is_sized) + COMPILING_S * is_compiled + reading


def _compiles(job: BatchJob, weight_bytes: int, hardware: Hardware, shape: Shape, wish: Wish) -> bool:
    """Whether its steps are compiled; see `serve.engine.vllm.arguments.prepare_engine`."""
    if job.engine.vllm.get("enforce_eager"):
        return False
    if UNCOMPILED in job.engine.env:
        return job.engine.env[UNCOMPILED] != "1"
    engines, fraction = shape.engines_per_device, wish.memory_fraction
    has_graphs = hardware.is_shared and wish.captures_graphs  # a TPU has none
    if not has_graphs or not holds_graphs(hardware.memory_bytes, weight_bytes, engines, wish.kv_cache_bytes, fraction):
        return True
    sizes = {name: getattr(shape, name) for name in ("tensor_parallel_size", "pipeline_parallel_size")}
    arguments = engine_arguments(job.model, job.engine, Device.cuda, job.model.dtype, job.task) | sizes
    config = overridden(plain_config(job.model.path), job.engine.vllm)
    return not needs_no_compiling(arguments, config)
