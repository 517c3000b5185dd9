"""From a wish to a size that changes calmly: bounds, hysteresis, surge, zero and stale metrics.

A fleet grows as soon as a wish says so and shrinks when the largest wish of a window does (Kubernetes' horizontal
autoscaler calls that a stabilisation window), each beyond a tolerance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from conf.schema.autoscale import AutoscaleSpec
from serve.autoscale.demand import held, queue
from serve.autoscale.observation import Decision, Observation

MIN_SURGE = 4
"""Replicas that may always start at the same time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Calm:
    """What is remembered between decisions."""

    wishes: tuple[tuple[float, float], ...] = ()
    """(time, wish) of the window, each larger than those after it: the first is the largest."""
    since_s: float | None = None
    """When it began to look: none leaves before a window was seen, so a restarted controller takes nothing away."""
    left_s: float = -math.inf
    """When replicas were last asked to leave."""
    asked_s: float | None = None
    """When a request was last seen; null before the first decision."""


def settle(spec: AutoscaleSpec, seen: Observation, wish: float, calm: Calm) -> tuple[Decision, Calm]:
    """Returns the size of the fleet for a wish, and what to remember.

    Args:
        spec: bounds and tolerances.
        seen: the fleet; ``seen.target`` is its size now.
        wish: replicas, a fraction, not bounded.
        calm: of the decision before.
    """
    now = seen.now_s
    if is_stale(spec, seen):
        return hold(spec, seen), calm
    is_asked = seen.requests > 0 or seen.short_prompt_tokens_per_s > 0
    asked_s = now if is_asked or calm.asked_s is None else calm.asked_s
    wishes = tuple(pair for pair in calm.wishes if pair[0] > now - spec.scale_down_window_s and pair[1] > wish)
    since_s = now if calm.since_s is None else calm.since_s
    calm = replace(calm, wishes=(*wishes, (now, wish)), asked_s=asked_s, since_s=since_s)
    size, reason = _size(spec, seen, wish, calm)
    size = clamp(spec, size)
    if size < seen.target:
        calm = replace(calm, left_s=now)
    return Decision(target=size, reason=reason), calm


def is_stale(spec: AutoscaleSpec, seen: Observation) -> bool:
    """Whether the metrics are too old to act on."""
    return seen.metrics_age_s > spec.stale_after_s


def hold(spec: AutoscaleSpec, seen: Observation) -> Decision:
    """Returns the decision where metrics are stale: the size that is there, within bounds."""
    return Decision(target=clamp(spec, seen.target), reason=f"held: metrics are {seen.metrics_age_s:.0f} s old")


def clamp(spec: AutoscaleSpec, size: int) -> int:
    """Returns a size within the bounds."""
    return min(max(size, spec.min_replicas), spec.max_replicas)


def _size(spec: AutoscaleSpec, seen: Observation, wish: float, calm: Calm) -> tuple[int, str]:
    now, target, tolerance = seen.now_s, seen.target, spec.tolerance_fraction
    assert calm.asked_s is not None
    assert calm.since_s is not None
    if target == 0:
        if seen.requests:
            return _surge(spec, seen, max(1, math.ceil(wish))), "woken by a request"
        return 0, "no request"
    most = max(1, math.ceil(wish))
    if most > target and wish > target * (1 + tolerance):
        is_urgent = wish > target * (1 + 2 * tolerance) + 1
        if not is_urgent and now - calm.left_s < spec.hold_s:
            return target, "held: replicas left a moment ago"
        return max(target, _surge(spec, seen, most)), f"{wish:.1f} replicas are needed"
    is_idle = spec.min_replicas == 0 and not seen.requests and now - calm.asked_s >= spec.scale_to_zero_s
    # the window is for a load that may come back: where there was none, and the policy expects none, it holds nothing
    if is_idle and wish < tolerance and now - calm.since_s >= spec.short_window_s:
        return 0, f"no request for {now - calm.asked_s:.0f} s"
    if now - calm.since_s < spec.scale_down_window_s:
        return target, "held: not long enough seen"
    # what was wished for a moment ago may come again, and what has not ended needs replicas that end it
    largest = max(calm.wishes[0][1], queue(spec, seen), held(seen))
    least = max(1, math.ceil(largest))
    if least < target and largest < target * (1 - tolerance):
        return least, f"{largest:.1f} replicas were enough for {spec.scale_down_window_s:.0f} s"
    if is_idle and target == 1:
        return 0, f"no request for {now - calm.asked_s:.0f} s"
    return target, "enough"


def _surge(spec: AutoscaleSpec, seen: Observation, wanted: int) -> int:
    """The most of ``wanted`` that may be asked for while others start."""
    return min(wanted, seen.running + max(MIN_SURGE, math.floor(spec.surge_fraction * seen.running)))
