"""`autoscale=tokens`: arriving and waiting tokens over a replica's measured capacity."""

from __future__ import annotations

from conf.schema.autoscale import AutoscaleSpec
from serve.autoscale.demand import arriving, size_for
from serve.autoscale.observation import Decision, Observation
from serve.autoscale.settle import Calm, settle


def decide(spec: AutoscaleSpec, seen: Observation, calm: Calm) -> tuple[Decision, Calm]:
    """Returns the size of the fleet, and what to remember."""
    return settle(spec, seen, size_for(spec, seen, arriving(seen), spec.utilization), calm)
