"""How fast an engine is, from what its device must compute and read, and what its CPU side costs.

The model of time and where its constants come from: docs/decisions/0004-roofline-plan.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from conf.schema.engine import Device
from serve.engine.hardware import Hardware
from serve.engine.model_size import ModelSize

COMPUTE_EFFICIENCY = 0.70
"""Of a GPU's dense FLOP/s, attention's reads and small kernels apart. Fitted, with `GPU_LAYER_TOKEN_S`, to 8 B with one
engine (11,400 tokens/s) and 1.1 B with two (47,900) on an H200, 512 sequences an engine."""
MEMORY_EFFICIENCY = 0.85
"""Of a GPU's bandwidth. Assumed, not fitted: none of the measured points is bound by memory."""
GPU_LAYER_TOKEN_S = 0.54e-6
"""Seconds of the device for an answer's token in a layer, whatever its size: small kernels, and attention's over few
rows. Not of a prompt's: loads of nearly only prompts take no more."""
GPU_STEP_S = 2.7e-3
"""Seconds of the engine's CPU side for a step, while the device computes the step before."""
GPU_SEQUENCE_CPU_S = 34e-6
"""Seconds of the CPU side for an answer's token. Fitted to 1.1 B with one engine on an H200 with 16 of 64 busy cores:
25,500 tokens/s at 512 sequences; on a free host it had 27,000 to 33,600."""
CPU_EFFICIENCY = 0.67
"""Of `hardware.CPU_FLOP_PER_S`, which is what was fitted."""
CPU_STEP_S = 4e-3
CPU_SEQUENCE_S = 80e-6
"""On two CPU cores, for a step and for a sequence's token. Fitted to the demo's model, 256 sequences: 83 to 98 rows/s
of 43 tokens (docs/benchmarks/batch_cpu.md), and to a model of 1 M: 400 rows/s of 16 tokens."""
BATCHED_TOKENS = 8192
"""Tokens that vLLM computes in a step at most. Source: vllm/engine/arg_utils.py (0.26-0.32), of its API server on a GPU
of 70 GiB and more that is no A100."""
CPU_BATCHED_TOKENS = 2048
LINK_EFFICIENCY = 0.6
PIPELINE_EFFICIENCY = 0.85
"""Of a pipeline's stages, which never take equally long. Assumed."""
REDUCE_S = 12e-6
"""Latency of one all-reduce between GPUs of a host; two a layer. Assumed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """What is asked, on average."""

    prompt_tokens: float
    answer_tokens: float
    """0 where an answer is a vector or a score."""
    longest_answer_tokens: float
    rows: int
    """Requests that engines compute."""
    saved_fraction: float = 0.0
    """Share of prompt tokens that the prefix cache holds already."""

    @property
    def computed_tokens(self) -> float:
        """Prompt tokens of a row that are computed."""
        return self.prompt_tokens * (1 - self.saved_fraction)

    @property
    def held_tokens(self) -> float:
        """Tokens of a row in the KV cache when it ends."""
        return self.prompt_tokens + self.answer_tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class Rate:
    """The speed of all engines of one device group in the middle of a job."""

    rows_per_s: float
    step_s: float
    """Seconds of an engine's step; with several engines on a device, of one that shares it."""
    floor_s: float
    """Seconds of a step that holds one sequence."""
    bound: str
    """What it waits for: compute, memory, or cpu."""


def predict_rate(
    size: ModelSize,
    hardware: Hardware,
    workload: Workload,
    num_seqs: int,
    tensor_parallel_size: int = 1,
    pipeline_parallel_size: int = 1,
    engines_per_device: int = 1,
) -> Rate:
    """Predicts the speed of one device, or of one group of devices that hold a model together.

    All sequences of an engine are followed from prompt to answer; as many start as end, so that is a steady state.

    Args:
        size: the model.
        hardware: the device.
        workload: what is asked.
        num_seqs: sequences that an engine computes at a time.
        tensor_parallel_size: devices that share each layer.
        pipeline_parallel_size: groups of devices that share the layers.
        engines_per_device: engines that share a device; 1 where a model takes several devices.
    """
    is_cpu = hardware.device is Device.cpu
    tp, pp = tensor_parallel_size, pipeline_parallel_size
    ranks = 1 if is_cpu else tp  # ranks on one machine share its cores
    n = max(1.0, num_seqs / pp)  # a pipeline's stages work on as many groups of sequences
    w = workload
    budget = CPU_BATCHED_TOKENS if is_cpu else BATCHED_TOKENS
    steps = max(w.answer_tokens, n * (w.computed_tokens + max(w.answer_tokens, 1)) / budget, 1.0)
    decoded = max(w.answer_tokens, 0.0)
    flop = w.computed_tokens * size.flop_per_token(w.prompt_tokens / 2)
    flop += decoded * size.flop_per_token(w.prompt_tokens + decoded / 2)
    compute = n * flop / (ranks * _flops(size, hardware)) / pp
    kv = size.kv_bytes_per_token or 0
    weights = _met_weights(size, n)
    bandwidth = ranks * hardware.bytes_per_s * MEMORY_EFFICIENCY * pp
    products = max(compute, steps * weights / bandwidth)
    # attention has kernels of its own, which compute little: its reads hide behind nothing
    attention = n * decoded * (w.prompt_tokens + decoded / 2) * kv / bandwidth
    exchange = _exchange(size, hardware, n * (w.computed_tokens + decoded), steps, tp) / pp
    device = products + attention + exchange
    if is_cpu:
        cpu = steps * CPU_STEP_S + n * max(decoded, 1.0) * CPU_SEQUENCE_S
        shared = engines_per_device * (device + cpu)
    else:
        device += n * decoded * size.num_layers * GPU_LAYER_TOKEN_S / (tp * pp)
        cpu = steps * GPU_STEP_S + n * decoded * GPU_SEQUENCE_CPU_S
        # where it decodes, vLLM schedules a step while the device computes the one before (asynchronous scheduling, its
        # default); what has no answers takes turns
        shared = max(engines_per_device * device, cpu if decoded else device + cpu)
    read = _met_weights(size, 1) / (ranks * hardware.bytes_per_s * MEMORY_EFFICIENCY)
    floor = read + CPU_STEP_S if is_cpu else max(read, GPU_STEP_S)
    rows = engines_per_device * n / shared * (PIPELINE_EFFICIENCY if pp > 1 else 1.0)
    bound = "compute" if 2 * compute >= products + attention else "memory"
    if cpu > (device if is_cpu else engines_per_device * device):
        bound = "cpu"
    return Rate(rows_per_s=rows, step_s=shared / steps, floor_s=floor, bound=bound)


def job_seconds(rate: Rate, workload: Workload, groups: int) -> float:
    """Returns the seconds from the first request to the last answer.

    Args:
        rate: of one group of devices.
        workload: what is asked.
        groups: groups of devices.
    """
    steady = workload.rows / (rate.rows_per_s * groups)
    # at the end slots stand empty while the longest answers go on. Their tokens are counted above; what is added is
    # what a step costs however few sequences it holds
    extra_steps = max(workload.longest_answer_tokens - workload.answer_tokens, 0.0)
    return steady + extra_steps * rate.floor_s


def _flops(size: ModelSize, hardware: Hardware) -> float:
    is_cpu = hardware.device is Device.cpu
    return hardware.flops_of(size.arithmetic) * (CPU_EFFICIENCY if is_cpu else COMPUTE_EFFICIENCY)


def _met_weights(size: ModelSize, tokens: float) -> float:
    """Bytes of weights that a step reads: of experts, those that some token of the step chooses."""
    if not size.is_moe:
        return size.weight_bytes
    return size.weight_bytes * (1 - (1 - size.active_parameters / size.parameters) ** tokens)


def _exchange(size: ModelSize, hardware: Hardware, tokens: float, steps: float, tp: int) -> float:
    """Seconds of the all-reduces of tensor parallelism: two a layer, each of a hidden state a token."""
    if tp == 1 or hardware.device is Device.cpu:
        return 0.0
    sent = 2 * (tp - 1) / tp * tokens * size.hidden_size * 2
    each = sent / (hardware.link_bytes_per_s * LINK_EFFICIENCY) + steps * REDUCE_S
    return 2 * size.num_layers * each
