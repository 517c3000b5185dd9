"""What fits on a device: a model's weights, what computing needs, and keys and values. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from conf.errors import UserError
from conf.schema.engine import Device
from serve.engine.dtype import SMALL_BYTES
from serve.engine.hardware import Hardware
from serve.engine.model_size import ModelSize
from serve.engine.roofline import BATCHED_TOKENS, Workload

USED_FRACTION = 0.9
"""Of a GPU's memory. Source: vllm/config/cache.py, gpu_memory_utilization (0.26: 0.9; 0.32: 0.92)."""
CONTEXT_BYTES = 1 << 30
"""What CUDA and its libraries take of a GPU for each engine. Assumed."""
GRAPH_BYTES = 4 << 30
"""What graphs of steps of up to 4,096 tokens take of a GPU for each engine, 2 to 9 GB (docs/benchmarks/offline.md)."""
GRAPHED_FRACTION = 0.85
"""gpu_memory_utilization where vLLM counts none of these graphs, or too few of them."""
BESIDE_GRAPHS_BYTES = 20 << 30
"""What such graphs must find free beside the weights, for them and a KV cache: a useful cache is worth more."""
_SAYS_GRAPHS = ("cudagraph_capture_sizes", "max_cudagraph_capture_size", "cudagraph_mode", "mode")
"""What a user says of graphs, or of compiling as a whole, in `compilation_config` or beside it, keeps ours away."""
CPU_KV_BYTES = 1 << 30
"""The KV cache of an engine on CPU where nobody says another, of values of 16 bits."""
DEVICES_PER_HOST = 8
"""What tensor parallelism may span: beyond a host's links it does not pay."""
USEFUL_SEQS = 32
"""Sequences that a KV cache should hold: with fewer, reading the weights costs more than the tokens."""
FEW_SEQS = 64
"""Sequences that a device must be able to compute at a time for a partition to count."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Wish:
    """What the user has set; null leaves it to the planner."""

    tensor_parallel_size: int | None = None
    pipeline_parallel_size: int | None = None
    engines_per_device: int | None = None
    num_replicas: int | None = None
    """Engines in all."""
    max_num_seqs: int | None = None
    in_flight_rows: int | None = None
    kv_cache_bytes: int | None = None
    memory_fraction: float | None = None
    """vLLM's gpu_memory_utilization."""
    captures_graphs: bool = True
    """Whether it leaves it to us what is captured."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Room:
    """What a device's memory leaves for keys and values."""

    kv_bytes: int
    """Of each engine on the device."""
    taken_bytes: int
    """Beside them: weights, activations, CUDA."""
    tokens: int | None
    """That fit; null where the size of an entry is unknown."""


def leaves_graphs(arguments: Mapping[str, Any]) -> bool:
    """Says whether engine arguments leave it to us what is captured.

    Args:
        arguments: the engine's, or the node `engine.vllm` alone.
    """
    said = arguments.get("compilation_config", {})
    is_said = not isinstance(said, Mapping) or any(name in said or name in arguments for name in _SAYS_GRAPHS)
    # each size would be captured once for every number of active adapters, and what has no answers is not measured
    is_other = arguments.get("enable_lora", False) or arguments.get("runner", "generate") != "generate"
    return not (is_said or is_other or arguments.get("enforce_eager"))


def holds_graphs(
    memory_bytes: float, weight_bytes: int, engines: int, kv_bytes: int | None, fraction: float | None
) -> bool:
    """Says whether a GPU has room for graphs of steps of up to 4,096 tokens, beside what is worth more than they are.

    Args:
        memory_bytes: of the GPU.
        weight_bytes: of one engine on it.
        engines: on it.
        kv_bytes: of each engine's KV cache; null where it takes what is left.
        fraction: of the memory that the user leaves to vLLM; null where nothing is said.
    """
    free = _beside_weights(memory_bytes, weight_bytes, engines, fraction)
    return free >= (BESIDE_GRAPHS_BYTES if kv_bytes is None else kv_bytes + 2 * GRAPH_BYTES)


def _beside_weights(memory_bytes: float, weight_bytes: int, engines: int, fraction: float | None) -> float:
    return memory_bytes * min(GRAPHED_FRACTION, fraction or 1.0) / engines - weight_bytes


def cpu_kv_bytes(size: ModelSize | None) -> int:
    """Returns the KV cache of an engine on CPU where nobody says another: of a large model as many tokens whatever they
    are kept in, while a small one has more than enough.

    Args:
        size: of the model; null where it is unknown.
    """
    is_double = size is not None and size.arithmetic == "fp32" and size.weight_bytes > SMALL_BYTES
    return CPU_KV_BYTES * (2 if is_double else 1)


def room_for(
    size: ModelSize, hardware: Hardware, tp: int, pp: int, engines: int, num_seqs: int, wish: Wish
) -> Room | None:
    """Returns what is left for the KV cache of each engine; null where the model itself does not fit."""
    weights = size.device_weight_bytes(tp, pp)
    entry = size.device_kv_bytes(tp, pp)
    if hardware.device is Device.cpu:
        free = hardware.memory_bytes * USED_FRACTION - weights * tp * pp
        kv_bytes = wish.kv_cache_bytes or cpu_kv_bytes(size)
        taken = weights * tp * pp
        if free < kv_bytes:
            return None
    else:
        # hidden states of a full step, the MLP's inner ones, and logits of all sequences in float32 twice
        working = BATCHED_TOKENS * size.hidden_size * 2 * 12 + num_seqs * size.vocab_size * 8 / tp
        memory, fraction = hardware.memory_bytes, wish.memory_fraction
        can_capture = wish.captures_graphs and hardware.is_shared  # a TPU has no graphs
        graphs = can_capture and holds_graphs(memory, weights, engines, wish.kv_cache_bytes, fraction)
        taken = round(weights + working + CONTEXT_BYTES + GRAPH_BYTES * graphs)
        free = memory * (fraction or USED_FRACTION) / engines - taken
        if graphs and engines > 1:  # the engine is told the cache, and asks `holds_graphs` with it
            free = min(free, _beside_weights(memory, weights, engines, fraction) - 2 * GRAPH_BYTES)
        kv_bytes = wish.kv_cache_bytes or int(free)
        if free <= 0 or kv_bytes > free + hardware.memory_bytes * 0.1:
            return None
    return Room(kv_bytes=kv_bytes, taken_bytes=taken, tokens=None if entry is None else kv_bytes // entry)


def fits_heads(size: ModelSize, tp: int) -> bool:
    """Returns whether vLLM can divide the heads: all of them, and the KV heads, or copies of each.

    Source: vllm/model_executor/models/llama.py, LlamaAttention (0.26-0.32).
    """
    return size.num_heads % tp == 0 and (size.num_kv_heads % tp == 0 or tp % size.num_kv_heads == 0)


def fitting_partitions(
    size: ModelSize, hardware: Hardware, workload: Workload, context: int, wish: Wish
) -> list[tuple[int, int]]:
    """Returns the partitions that hold the model and a useful cache, else those with a cache of one full sequence.

    Raises:
        UserError: when there is none.
    """
    useful = max(context, math.ceil(USEFUL_SEQS * workload.held_tokens))
    every = list(_partitions(size, hardware, wish))
    for needed in (useful, context):
        fitting = []
        for tp, pp in every:
            room = room_for(size, hardware, tp, pp, 1, wish.max_num_seqs or FEW_SEQS, wish)
            if room is not None and (room.tokens is None or room.tokens >= needed):
                fitting.append((tp, pp))
        if fitting:
            return fitting
    tp, pp = every[-1] if every else (wish.tensor_parallel_size or 1, wish.pipeline_parallel_size or 1)
    if tp * pp > hardware.num_devices and hardware.device is Device.cuda:
        raise UserError(
            f"engine.tensor_parallel_size x engine.pipeline_parallel_size must be <= hardware.num_devices="
            f"{hardware.num_devices}, got {tp * pp}"
        )
    raise UserError(
        f"hardware.num_devices={hardware.num_devices} x {gigabytes(hardware.memory_bytes)} ({hardware.name}) cannot"
        f" hold the model: {gigabytes(size.weight_bytes)} of weights, {gigabytes(size.device_weight_bytes(tp, pp))} a"
        f" device at tensor_parallel_size={tp} pipeline_parallel_size={pp}, and a cache of one sequence of {context:,}"
        " tokens (engine.max_model_len)"
    )


def _partitions(size: ModelSize, hardware: Hardware, wish: Wish) -> Iterator[tuple[int, int]]:
    """Yields partitions, few devices first, and of as many devices those within a host first."""
    most = hardware.num_devices if hardware.device is Device.cuda else 1
    set_tp, set_pp = wish.tensor_parallel_size, wish.pipeline_parallel_size
    tps = [set_tp] if set_tp else [tp for tp in range(1, min(most, DEVICES_PER_HOST) + 1) if fits_heads(size, tp)]
    pps = [set_pp] if set_pp else list(range(1, min(most, size.num_layers) + 1))
    limit = max(most, (set_tp or 1) * (set_pp or 1)) if hardware.device is Device.cpu else most
    pairs = [(tp, pp) for pp in pps for tp in tps if tp * pp <= limit]
    yield from sorted(pairs, key=lambda pair: (pair[0] * pair[1], pair[1]))


def gigabytes(count: float) -> str:
    """Writes bytes in GB or MB."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e8 else f"{count / 1e6:,.1f} MB"
