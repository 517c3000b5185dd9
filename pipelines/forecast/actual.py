"""Beside what a job came to: what the roofline says of the same work, so that both can be compared and learned from."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from conf.schema.engine import EngineKind
from pipelines.batch.plan import Plan
from pipelines.forecast.efficiency import key_of, learn, look_up
from pipelines.forecast.forecast import as_set
from pipelines.forecast.target import hardware_of, size_of
from serve.engine.roofline import Workload
from serve.engine.shape import choose_shape


def with_prediction(plan: Plan, record: dict[str, Any]) -> dict[str, Any]:
    """Returns a job's record with ``predicted`` in it, and lets the efficiency table learn from it. Never raises.

    The prediction is for the requests, tokens and engines that there were: what it misses is the engine's speed, not a
    guess at the answers' length. It is null where nothing was computed, or the devices are unknown.
    """
    try:
        predicted = _predict(plan, record)
    except Exception:  # a finished job must not fail over a figure beside its own
        predicted = None
    record = {**record, "predicted": predicted}
    learn(record)
    return record


def _predict(plan: Plan, record: dict[str, Any]) -> dict[str, Any] | None:
    requests, inference = record["requests"], record["seconds"]["inference"]
    engine = plan.job.engine
    if not requests or not inference or engine.kind is not EngineKind.vllm:
        return None
    hardware = hardware_of(replace(plan.job, engine=replace(engine, device=plan.device)))
    # an elastic pool may have been smaller than it might be, and who was never ready computed nothing
    ready = sum(bool(share["replicas"]) for share in record["replica_seconds"]["replicas"])
    wish = replace(as_set(engine), num_replicas=ready)
    needed = -(-ready // engine.engines_per_device) * engine.world_size
    hardware = replace(hardware, num_devices=max(hardware.num_devices, needed))
    size = size_of(plan, hardware)
    # its own throughput says what engines computed; the record's token counts hold former runs' too
    prompt = record["prompt_tokens_per_s"] * inference / requests
    answer = record["completion_tokens_per_s"] * inference / requests
    longest = min(3 * answer, float(plan.job.sampling.max_tokens))
    workload = Workload(
        prompt_tokens=prompt,
        answer_tokens=answer,
        longest_answer_tokens=longest,
        rows=requests,
        saved_fraction=record["prefix_hit_rate"] or 0.0,
    )
    shape = choose_shape(size, hardware, workload, 1, wish)
    key = key_of(hardware.name, size.size_class, size.weight_kind)
    efficiency = look_up(key)
    seconds = shape.seconds / efficiency.ratio
    return {
        "inference_s": seconds,
        "completion_tokens_per_s": requests * answer / seconds,
        "roofline_s": shape.seconds,
        "efficiency": efficiency.ratio,
        "actual_over_predicted": inference / seconds,
        "bound": shape.rate.bound,
        "device_bytes": shape.device_bytes,
        "key": key,
    }
