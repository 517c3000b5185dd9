"""What the start of a job takes, where no job before has taught it."""

from __future__ import annotations

from conf.schema.engine import Device, EngineSpec
from serve.engine.hardware import Hardware
from serve.engine.model_size import ModelSize
from serve.engine.shape import Shape

GPU_START_S = 35.0
"""On a GPU, from the command to the first answer: Ray, the import of vLLM, its load, graphs. With 1.1 B and 8 B on H200
32 to 45 s (docs/benchmarks/offline_shipped.json)."""
MEASURING_S = 20.0
"""Where vLLM is to find out how large the KV cache may be: it captures its graphs for that too. 52 to 69 s with 8 B."""
COMPILING_S = 50.0
"""Where a step is compiled: 112 s with 8 B. `serve.engine.vllm.graphs.needs_no_compiling` says more exactly where."""
S_PER_GB = 0.5
"""Each GB of weights, read from a local disk. Assumed: those measured had none."""
CPU_START_S = 25.0
"""On two CPU cores: docs/benchmarks/batch_cpu.md."""


def start_seconds(size: ModelSize, hardware: Hardware, shape: Shape, engine: EngineSpec) -> float:
    """Returns the seconds of a start.

    Args:
        size: of the model.
        hardware: the devices.
        shape: how engines lie on them.
        engine: what is asked of them.
    """
    tp, pp = shape.tensor_parallel_size, shape.pipeline_parallel_size
    reading = S_PER_GB * size.device_weight_bytes(tp, pp) / 1e9
    if hardware.device is Device.cpu:
        return CPU_START_S + reading
    is_sized = engine.kv_cache_bytes is not None or shape.engines_per_device > 1
    is_compiled = tp * pp > 1 or size.arithmetic not in ("bf16", "fp32") or size.is_moe
    return GPU_START_S + MEASURING_S * (not is_sized) + COMPILING_S * is_compiled + reading
