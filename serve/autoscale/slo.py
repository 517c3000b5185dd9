"""`autoscale=slo`: as `tokens`, with the share of capacity that keeps the targets of TTFT and TPOT.

The share falls by a fifth when a target is missed and creeps up while both are kept with room to spare: additive
increase, multiplicative decrease. So the fleet is as small as the service level allows, whatever the arrivals are like.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from conf.schema.autoscale import AutoscaleSpec
from serve.autoscale.demand import arriving, size_for
from serve.autoscale.observation import Decision, Observation
from serve.autoscale.settle import Calm, hold, is_stale, settle

LEAST, MOST = 0.2, 0.95
"""Bounds of the share: below the first, more replicas do not help."""
CUT = 0.8
CREEP_PER_S = 0.0005
"""A tenth of the share in 200 s."""
HELPED = 0.9
"""A cut that leaves more of the excess than this did not help, and is taken back."""
MAX_FUTILE = 5
EASY = 0.5
"""Of a target: percentiles below are kept with room to spare."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """What is remembered between decisions."""

    calm: Calm = field(default_factory=Calm)
    utilization: float
    cut_s: float = -math.inf
    """When it was last cut: a cut shows only when the replicas that it asks for have started."""
    cut_at: float = 0.0
    """The worse percentile over its target, when it was last cut."""
    futile: int = 0
    """Cuts in a row that did not help: what is late then does not wait for replicas."""
    seen_s: float | None = None


def decide(spec: AutoscaleSpec, seen: Observation, share: Share) -> tuple[Decision, Share]:
    """Returns the size of the fleet, and what to remember."""
    if is_stale(spec, seen):
        return hold(spec, seen), share
    share = _moved(spec, seen, share)
    wish = size_for(spec, seen, arriving(seen), share.utilization)
    decision, calm = settle(spec, seen, wish, share.calm)
    text = f"{decision.reason} (at {share.utilization:.0%} of capacity)"
    return replace(decision, reason=text), replace(share, calm=calm)


def _moved(spec: AutoscaleSpec, seen: Observation, share: Share) -> Share:
    now = seen.now_s
    since_s = 0.0 if share.seen_s is None else now - share.seen_s
    share = replace(share, seen_s=now)
    # of its target, by the worse of the two
    worst = max((seen.ttft_s or 0.0) / spec.ttft_target_s, (seen.tpot_s or 0.0) / spec.tpot_target_s)
    # the window has to forget what was missed before the new replicas came
    is_judged = now - share.cut_s >= (seen.start_s + spec.long_window_s) * 2**share.futile
    if worst > 1:
        if not is_judged:
            return share
        if share.cut_at and worst > HELPED * share.cut_at:
            # prompts that take longer than the target by themselves: more replicas do not help
            back = min(MOST, share.utilization / CUT)
            return replace(share, utilization=back, cut_s=now, cut_at=0.0, futile=min(share.futile + 1, MAX_FUTILE))
        return replace(share, utilization=max(LEAST, share.utilization * CUT), cut_s=now, cut_at=worst)
    if worst < EASY and seen.ttft_s is not None:
        share = replace(share, utilization=min(MOST, share.utilization + CREEP_PER_S * since_s))
    return replace(share, cut_at=0.0, futile=0) if is_judged else share
