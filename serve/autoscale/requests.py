"""`autoscale=requests`: Ray Serve's default, for comparison.

Source: ray 2.60 `ray/serve/autoscaling_policy.py` (`_core_replica_queue_length_policy`, `_apply_scaling_factors` with
factors of 1, `_apply_delay_logic`, `_get_cold_start_scale_up_replicas`) and `ray/serve/_private/autoscaling_state.py`
(`get_decision_num_replicas`, `apply_bounds`): wish = running x (ongoing / running) / target_ongoing_requests, rounded
up, taken when it lasted for the delay; requests are averaged over the look-back period. Serve's controller decides ten
times a second; delays are compared with clocks in both. What is ours: stale metrics move nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from conf.schema.autoscale import AutoscaleSpec
from serve.autoscale.observation import Decision, Observation
from serve.autoscale.settle import clamp, hold, is_stale

_EPS_S = 1e-6


@dataclass(frozen=True, kw_only=True, slots=True)
class Delay:
    """What is remembered between decisions."""

    counts: tuple[tuple[float, int], ...] = ()
    """(time, ongoing requests) of the look-back period."""
    direction: int = 0
    """1 while more are wanted, -1 while fewer are."""
    since_s: float = 0.0


def decide(spec: AutoscaleSpec, seen: Observation, delay: Delay) -> tuple[Decision, Delay]:
    """Returns the size of the fleet, and what to remember."""
    if is_stale(spec, seen):
        return hold(spec, seen), delay
    now, target = seen.now_s, seen.target
    counts = (*(pair for pair in delay.counts if pair[0] > now - spec.look_back_s), (now, seen.requests))
    delay = replace(delay, counts=counts)
    ongoing = sum(number for _, number in counts) / len(counts)
    if seen.running == 0:
        # nothing runs yet: one for the first request, without delay, and until it runs what is asked for already
        size = max(1, target) if ongoing > 0 else target
        return Decision(target=clamp(spec, size), reason=f"{ongoing:.1f} requests, none running"), delay
    wish = max(0, math.ceil(ongoing / spec.target_ongoing_requests - 1e-9))
    direction = (wish > target) - (wish < target)
    if direction != delay.direction:
        delay = replace(delay, direction=direction, since_s=now)
    wait_s = spec.upscale_delay_s if direction > 0 else spec.downscale_delay_s
    size = target
    if direction and now - delay.since_s + _EPS_S >= wait_s:
        size = wish if direction > 0 or target == 1 else max(1, wish)
        delay = replace(delay, direction=0)
    return Decision(target=clamp(spec, size), reason=f"{ongoing:.1f} requests, {wish} wanted"), delay
