"""The shape in which a model runs: TP x PP x engines a device x sequences, each with its reason. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from conf.errors import UserError
from conf.schema.engine import Device
from serve.engine.hardware import Hardware
from serve.engine.model_size import ModelSize
from serve.engine.roofline import BATCHED_TOKENS, Rate, Workload, job_seconds, predict_rate

USED_FRACTION = 0.9
"""Of a GPU's memory. Source: vllm/config/cache.py, gpu_memory_utilization (0.26: 0.9; 0.32: 0.92)."""
CONTEXT_BYTES = 1 << 30
"""What CUDA, its graphs and libraries take of a GPU for each engine. Assumed."""
CPU_KV_BYTES = 1 << 30
"""The KV cache of an engine on CPU where nobody says another; see serve/engine/vllm/arguments.py."""
DEVICES_PER_HOST = 8
"""What tensor parallelism may span: beyond a host's links it does not pay."""
USEFUL_SEQS = 32
"""Sequences that a KV cache should hold: with fewer, reading the weights costs more than the tokens."""
MIN_GAIN = 1.15
"""What several engines a device must be expected to gain: each costs start-up, host memory and its own cache."""
NEAR = 0.97
"""A smaller choice that reaches so much of the best is taken."""
SEQS = (64, 128, 256, 512, 1024)
CPU_SEQS = (32, 64, 128, 256)
ENGINES = (1, 2, 3, 4)


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """How a model runs."""

    tensor_parallel_size: int
    pipeline_parallel_size: int
    engines_per_device: int
    num_replicas: int
    """Engines in all, on all devices."""
    max_num_seqs: int
    in_flight_rows: int
    kv_cache_bytes: int
    """Of one engine, on each of its devices."""
    kv_seqs: int | None
    """Sequences of mean length that an engine's cache holds; null where the size of its entries is unknown."""
    device_bytes: int
    """Memory taken on the fullest device: weights, caches and what computing needs, of all its engines."""
    rate: Rate
    """Of one group of devices."""
    seconds: float
    """From the first request to the last answer."""
    reasons: dict[str, str] = field(default_factory=dict)

    @property
    def groups(self) -> int:
        """Groups of devices that each hold the model."""
        return max(1, math.ceil(self.num_replicas / self.engines_per_device))

    @property
    def num_devices(self) -> int:
        """Devices in use."""
        return self.groups * self.tensor_parallel_size * self.pipeline_parallel_size


@dataclass(frozen=True, kw_only=True, slots=True)
class Room:
    """What a device's memory leaves for keys and values."""

    kv_bytes: int
    """Of each engine on the device."""
    taken_bytes: int
    """Beside them: weights, activations, CUDA."""
    tokens: int | None
    """That fit; null where the size of an entry is unknown."""


def choose_shape(size: ModelSize, hardware: Hardware, workload: Workload, context_tokens: int, wish: Wish) -> Shape:
    """Chooses what is expected to be fastest; what the user has set stays.

    Args:
        size: the model.
        hardware: the devices; ``num_devices`` of them.
        workload: what is asked.
        context_tokens: the longest sequence that an engine must be able to hold.
        wish: what the user has set.

    Raises:
        UserError: when the model does not fit on all devices together.
    """
    fitting = _fitting(size, hardware, workload, context_tokens, wish)
    best = _best_engines(size, hardware, workload, context_tokens, wish, fitting[0])
    for partition in fitting[1:]:
        other = _best_engines(size, hardware, workload, context_tokens, wish, partition)
        if other.rate.rows_per_s * other.groups >= MIN_GAIN * best.rate.rows_per_s * best.groups:
            best = other
    tp, pp = best.tensor_parallel_size, best.pipeline_parallel_size
    fit = f"{gigabytes(size.device_weight_bytes(tp, pp))} of weights a device of {gigabytes(hardware.memory_bytes)}"
    fit += "" if (tp, pp) == (1, 1) else "; fewer devices leave no room, or too small a cache"
    own = {
        "tensor_parallel_size": fit if tp > 1 or pp == 1 else "the heads stay together",
        "pipeline_parallel_size": fit if pp > 1 else "the layers stay together",
    }
    own = {key: "set by you" if getattr(wish, key) is not None else reason for key, reason in own.items()}
    return replace(best, reasons={**own, **best.reasons})


def _best_engines(
    size: ModelSize, hardware: Hardware, workload: Workload, context: int, wish: Wish, partition: tuple[int, int]
) -> Shape:
    """Returns the best number of engines a device for a partition."""
    groups = max(1, hardware.num_devices // (partition[0] * partition[1]))
    found: list[Shape] = []
    for engines in _engines(hardware, partition[0] * partition[1], groups, wish):
        shape = _shape(size, hardware, workload, context, wish, (*partition, engines), groups)
        if shape is not None:
            found.append(shape)
    if not found:
        raise UserError(
            f"engine.engines_per_device={wish.engines_per_device}: so many do not fit on a device of"
            f" {gigabytes(hardware.memory_bytes)}"
        )
    one = best = found[0]
    for shape in found[1:]:
        if (
            shape.rate.rows_per_s * NEAR > best.rate.rows_per_s
            and shape.rate.rows_per_s >= MIN_GAIN * one.rate.rows_per_s
        ):
            best = shape
    best.reasons["engines_per_device"] = _engines_reason(found, best, wish, hardware, partition[0] * partition[1])
    return best


def room_for(
    size: ModelSize, hardware: Hardware, tp: int, pp: int, engines: int, num_seqs: int, wish: Wish
) -> Room | None:
    """Returns what is left for the KV cache of each engine; null where the model itself does not fit."""
    weights = size.device_weight_bytes(tp, pp)
    entry = size.device_kv_bytes(tp, pp)
    if hardware.device is Device.cpu:
        free = hardware.memory_bytes * USED_FRACTION - weights * tp * pp
        kv_bytes = wish.kv_cache_bytes or CPU_KV_BYTES
        taken = weights * tp * pp
        if free < kv_bytes:
            return None
    else:
        # hidden states of a full step, the MLP's inner ones, and logits of all sequences in float32 twice
        working = BATCHED_TOKENS * size.hidden_size * 2 * 12 + num_seqs * size.vocab_size * 8 / tp
        taken = round(weights + working + CONTEXT_BYTES)
        free = hardware.memory_bytes * (wish.memory_fraction or USED_FRACTION) / engines - taken
        kv_bytes = wish.kv_cache_bytes or int(free)
        if free <= 0 or kv_bytes > free + hardware.memory_bytes * 0.1:
            return None
    return Room(kv_bytes=kv_bytes, taken_bytes=taken, tokens=None if entry is None else kv_bytes // entry)


def fits_heads(size: ModelSize, tp: int) -> bool:
    """Returns whether vLLM can divide the heads: all of them, and the KV heads, or copies of each.

    Source: vllm/model_executor/models/llama.py, LlamaAttention (0.26-0.32).
    """
    return size.num_heads % tp == 0 and (size.num_kv_heads % tp == 0 or tp % size.num_kv_heads == 0)


def _fitting(
    size: ModelSize, hardware: Hardware, workload: Workload, context: int, wish: Wish
) -> list[tuple[int, int]]:
    """Returns the partitions that hold the model and a useful cache, else those with a cache of one full sequence."""
    useful = max(context, math.ceil(USEFUL_SEQS * workload.held_tokens))
    every = list(_partitions(size, hardware, wish))
    for needed in (useful, context):
        fitting = []
        for tp, pp in every:
            room = room_for(size, hardware, tp, pp, 1, wish.max_num_seqs or SEQS[0], wish)
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
        f"hardware.num_devices={hardware.num_devices} x {gigabytes(hardware.memory_bytes)} ({hardware.name}) cannot hold"
        f" the model: {gigabytes(size.weight_bytes)} of weights, {gigabytes(size.device_weight_bytes(tp, pp))} a device"
        f" at tensor_parallel_size={tp} pipeline_parallel_size={pp}, and a cache of one sequence of {context:,} tokens"
        " (engine.max_model_len)"
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


def _engines(hardware: Hardware, group_devices: int, groups: int, wish: Wish) -> tuple[int, ...]:
    if wish.engines_per_device is not None:
        return (wish.engines_per_device,)
    if wish.num_replicas is not None:
        return (max(1, math.ceil(wish.num_replicas / groups)),)
    return (1,) if group_devices > 1 or hardware.device is Device.cpu else ENGINES


def _shape(
    size: ModelSize,
    hardware: Hardware,
    workload: Workload,
    context: int,
    wish: Wish,
    partition: tuple[int, int, int],
    groups: int,
) -> Shape | None:
    """Returns the best shape with so many engines a device; null where they do not fit."""
    tp, pp, engines = partition
    found: list[Shape] = []
    replicas = wish.num_replicas or groups * engines
    groups = max(1, math.ceil(replicas / engines))
    choices = CPU_SEQS if hardware.device is Device.cpu else SEQS
    for seqs in (wish.max_num_seqs,) if wish.max_num_seqs else choices:
        room = room_for(size, hardware, tp, pp, engines, seqs, wish)
        if room is None or (room.tokens is not None and room.tokens < context):
            continue
        kv_seqs = None if room.tokens is None else int(room.tokens / max(workload.held_tokens, 1))
        running = min(seqs, kv_seqs or seqs, max(1, math.ceil(workload.rows / replicas)))
        rate = predict_rate(size, hardware, workload, running, tp, pp, engines)
        found.append(
            Shape(
                tensor_parallel_size=tp,
                pipeline_parallel_size=pp,
                engines_per_device=engines,
                num_replicas=replicas,
                max_num_seqs=seqs,
                in_flight_rows=wish.in_flight_rows or 2 * seqs,
                kv_cache_bytes=room.kv_bytes,
                kv_seqs=kv_seqs,
                device_bytes=engines * (room.taken_bytes + room.kv_bytes),
                rate=rate,
                seconds=job_seconds(rate, workload, running, groups, engines),
            )
        )
    if not found:
        return None
    top = max(shape.rate.rows_per_s for shape in found)
    best = next(shape for shape in found if shape.rate.rows_per_s >= NEAR * top)
    best.reasons.update(_reasons(best, workload, wish, hardware))
    return best


def _reasons(shape: Shape, workload: Workload, wish: Wish, hardware: Hardware) -> dict[str, str]:
    few = math.ceil(workload.rows / shape.num_replicas)
    seqs = f"more gain less than {1 - NEAR:.0%}"
    if shape.kv_seqs is not None and shape.kv_seqs <= shape.max_num_seqs:
        seqs = f"the cache holds {shape.kv_seqs:,} sequences"
    elif few <= shape.max_num_seqs:
        seqs = f"an engine has {few:,} rows in all"
    where = "on CPU 1 GiB" if hardware.device is Device.cpu else "what weights and computing leave free"
    reasons = {
        "num_replicas": f"{hardware.num_devices} device{'s' if hardware.num_devices > 1 else ''}",
        "max_num_seqs": seqs,
        "in_flight_rows": "twice max_num_seqs, so that no slot waits for a row",
        "kv_cache_bytes": where + ("" if shape.kv_seqs is None else f": {shape.kv_seqs:,} sequences of mean length"),
    }
    return {key: "set by you" if getattr(wish, key) is not None else reason for key, reason in reasons.items()}


def _engines_reason(found: list[Shape], best: Shape, wish: Wish, hardware: Hardware, group_devices: int) -> str:
    rates = [shape.rate.rows_per_s for shape in found]
    if wish.engines_per_device is not None or wish.num_replicas is not None:
        return "set by you" if wish.engines_per_device is not None else "what num_replicas asks for"
    if hardware.device is Device.cpu:
        return "one engine uses all cores"
    if group_devices > 1:
        return "an engine takes several devices"
    if best is not found[0]:
        gain = best.rate.rows_per_s / rates[0] - 1
        return f"{gain:+.0%} expected: the CPU side of one engine leaves the device idle"
    if len(found) == 1:
        return "no second one fits"
    return f"more are expected to gain {max(rates[1:]) / rates[0] - 1:+.0%}, less than {MIN_GAIN - 1:+.0%}"


def gigabytes(count: float) -> str:
    """Writes bytes in GB or MB."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e8 else f"{count / 1e6:,.1f} MB"
