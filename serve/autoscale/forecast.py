"""`autoscale=forecast`: as `tokens`, at the load that is expected when a replica started now is ready."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from conf.schema.autoscale import AutoscaleSpec
from serve.autoscale.demand import arriving, busy_replicas, size_for
from serve.autoscale.holt import Forecast, Track, follow
from serve.autoscale.observation import Decision, Observation
from serve.autoscale.settle import Calm, hold, is_stale, settle


@dataclass(frozen=True, kw_only=True, slots=True)
class Outlook:
    """What is remembered between decisions."""

    calm: Calm = field(default_factory=Calm)
    tracks: tuple[Track, ...] = ()
    forecast: Forecast = field(default_factory=lambda: Forecast(value=0.0, upper=0.0))
    next_s: float = -math.inf
    """When the next value is taken."""


def decide(spec: AutoscaleSpec, seen: Observation, outlook: Outlook) -> tuple[Decision, Outlook]:
    """Returns the size of the fleet, and what to remember."""
    if is_stale(spec, seen):
        return hold(spec, seen), outlook
    outlook = _watched(spec, seen, outlook)
    now, expected = arriving(seen), outlook.forecast.upper
    wish = max(size_for(spec, seen, now, spec.utilization), expected / spec.forecast_utilization)
    decision, calm = settle(spec, seen, wish, outlook.calm)
    if expected > now:
        decision = replace(decision, reason=f"{decision.reason} (load {now:.1f}, {expected:.1f} expected)")
    return decision, replace(outlook, calm=calm)


def _watched(spec: AutoscaleSpec, seen: Observation, outlook: Outlook) -> Outlook:
    if seen.now_s < outlook.next_s:
        return outlook
    load = busy_replicas(seen.short_prompt_tokens_per_s, seen.short_answer_tokens_per_s, seen.capacity)
    horizon = max(1, math.ceil((seen.start_s + spec.interval_s) / spec.forecast_bin_s))
    memory = max(1, round(spec.forecast_memory_s / spec.forecast_bin_s))
    tracks, forecast = follow(outlook.tracks, load, horizon, spec.forecast_quantile, memory)
    # decisions come late at times: the next value is a span after this one was due, unless that is past, too
    next_s = max(outlook.next_s, seen.now_s - spec.forecast_bin_s) + spec.forecast_bin_s
    return replace(outlook, tracks=tracks, forecast=forecast, next_s=next_s)
