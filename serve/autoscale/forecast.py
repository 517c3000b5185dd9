"""`autoscale=forecast`: as `tokens`, at the load that is expected when a replica started now is ready.

How much of the fleet that load may take is a matter of trust: while the targets are kept and no load exceeds what was
expected, the share creeps up; a miss or a surprise takes all of it back. A steady load needs less room than one that
has just begun to rise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from conf.schema.autoscale import AutoscaleSpec
from serve.autoscale.demand import arriving, busy_replicas, size_for
from serve.autoscale.holt import Forecast, Track, follow
from serve.autoscale.observation import Decision, Observation
from serve.autoscale.settle import Calm, hold, is_stale, settle

CREEP_PER_S = 0.001
"""Of the share: a tenth of capacity in 100 s."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outlook:
    """What is remembered between decisions."""

    calm: Calm = field(default_factory=Calm)
    tracks: tuple[Track, ...] = ()
    forecast: Forecast = field(default_factory=lambda: Forecast(value=0.0, upper=0.0))
    next_s: float = -math.inf
    """When the next value is taken."""
    share: float | None = None
    """Of capacity that the expected load may take; null before the first decision."""
    seen_s: float = 0.0
    """When that was last moved."""


def decide(spec: AutoscaleSpec, seen: Observation, outlook: Outlook) -> tuple[Decision, Outlook]:
    """Returns the size of the fleet, and what to remember."""
    if is_stale(spec, seen):
        return hold(spec, seen), outlook
    share = _trusted(spec, seen, outlook)
    outlook = replace(_watched(spec, seen, outlook), share=share, seen_s=seen.now_s)
    now, expected = arriving(seen), outlook.forecast.upper
    wish = max(size_for(spec, seen, now, max(spec.utilization, share)), expected / share)
    decision, calm = settle(spec, seen, wish, outlook.calm)
    if expected > now:
        text = f"{decision.reason} (load {now:.1f}, {expected:.1f} expected, at {share:.0%} of capacity)"
        decision = replace(decision, reason=text)
    return decision, replace(outlook, calm=calm)


def _trusted(spec: AutoscaleSpec, seen: Observation, outlook: Outlook) -> float:
    """Returns the share of capacity that the expected load may take."""
    upper = outlook.forecast.upper
    is_late = (seen.ttft_s or 0.0) > spec.ttft_target_s or (seen.tpot_s or 0.0) > spec.tpot_target_s
    if outlook.share is None or is_late or 0 < upper < arriving(seen):
        return spec.forecast_utilization
    grown = outlook.share + CREEP_PER_S * (seen.now_s - outlook.seen_s)
    return min(spec.forecast_max_utilization, grown)


def _watched(spec: AutoscaleSpec, seen: Observation, outlook: Outlook) -> Outlook:
    began_s = outlook.calm.since_s
    # until a window was seen its rate only seems to rise, and the misses of that would be remembered
    if began_s is None or seen.now_s < max(outlook.next_s, began_s + spec.short_window_s):
        return outlook
    load = busy_replicas(seen.short_prompt_tokens_per_s, seen.short_answer_tokens_per_s, seen.capacity)
    horizon = max(1, math.ceil((seen.start_s + spec.interval_s) / spec.forecast_bin_s))
    memory = max(1, round(spec.forecast_memory_s / spec.forecast_bin_s))
    tracks, forecast = follow(outlook.tracks, load, horizon, spec.forecast_quantile, memory)
    # decisions come late at times: the next value is a span after this one was due, unless that is past, too
    next_s = max(outlook.next_s, seen.now_s - spec.forecast_bin_s) + spec.forecast_bin_s
    return replace(outlook, tracks=tracks, forecast=forecast, next_s=next_s)
