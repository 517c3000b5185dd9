"""The shape in which a model runs: TP x PP x engines a device x sequences, each with its reason. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace

from conf.errors import UserError
from conf.schema.engine import Device
from serve.engine.hardware import Hardware
from serve.engine.model_size import ModelSize
from serve.engine.roofline import Rate, Workload, job_seconds, predict_rate
from serve.engine.room import Wish, fitting_partitions, gigabytes, room_for

MIN_GAIN = 1.15
"""What several engines a device must be expected to gain: each costs start-up, host memory and its own cache."""
NEAR = 0.97
"""A smaller choice that reaches so much of the best is taken."""
SEQS = (64, 128, 256, 512, 1024)
CPU_SEQS = (32, 64, 128, 256)
ENGINES = (1, 2, 3, 4)


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
    fitting = fitting_partitions(size, hardware, workload, context_tokens, wish)
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
    reasons = {**own, **best.reasons}
    return replace(best, reasons={key.name: reasons[key.name] for key in fields(Shape) if key.name in reasons})


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
        rate = shape.rate.rows_per_s
        if rate * NEAR > best.rate.rows_per_s and rate >= MIN_GAIN * one.rate.rows_per_s:
            best = shape
    best.reasons["engines_per_device"] = _engines_reason(found, best, wish, hardware, partition[0] * partition[1])
    return best


def _engines(hardware: Hardware, group_devices: int, groups: int, wish: Wish) -> tuple[int, ...]:
    if wish.engines_per_device is not None:
        return (wish.engines_per_device,)
    if wish.num_replicas is not None:
        return (max(1, math.ceil(wish.num_replicas / groups)),)
    is_alone = group_devices > 1 or hardware.device is Device.cpu or not hardware.is_shared
    return (1,) if is_alone else ENGINES


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
                seconds=job_seconds(rate, workload, groups),
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
        seqs = f"an engine has {few:,} row{'s' if few > 1 else ''} in all"
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
    if not hardware.is_shared:
        return "a device of this kind has one process"
    if best is not found[0]:
        gain = best.rate.rows_per_s / rates[0] - 1
        return f"{gain:+.0%} expected: the CPU side of one engine leaves the device idle"
    if len(found) == 1:
        return "no second one fits"
    return f"more are expected to gain {max(rates[1:]) / rates[0] - 1:+.0%}, less than {MIN_GAIN - 1:+.0%}"
