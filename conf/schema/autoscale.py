"""How many replicas a service has: the policy, its bounds, and what keeps it calm."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

from conf.errors import UserError


class AutoscalePolicy(Enum):
    """The rule that sizes the fleet.

    ``tokens`` divides arriving and waiting tokens by what a replica was measured to do; ``slo`` does the same and moves
    ``utilization`` until the targets of TTFT and TPOT hold at the least cost; ``forecast`` is ``tokens`` at the load
    that is expected when a replica started now is ready; ``requests`` is Ray Serve's default, for comparison.
    """

    tokens = "tokens"
    slo = "slo"
    forecast = "forecast"
    requests = "requests"


@dataclass(kw_only=True, slots=True)
class AutoscaleSpec:
    """The autoscaler of a service."""

    policy: AutoscalePolicy = AutoscalePolicy.forecast
    """The rule."""
    min_replicas: int = 1
    """Never fewer. 0 lets an idle service stop all; the first request that waits then starts one. Of `manta simulate`:
    `manta serve` takes both bounds from engine.num_replicas=MIN..MAX."""
    max_replicas: int = 100
    """Never more."""
    prefill_tokens_per_s: float | None = None
    """`manta serve`: prompt tokens that a replica computes a second; null lets each measure it as it starts."""
    decode_tokens_per_s: float | None = None
    """`manta serve`: answer tokens of a full replica a second; null lets each measure it as it starts."""
    start_s: float = 45.0
    """`manta serve`: seconds that a replica takes to start, until one has said what it took."""
    interval_s: float = 1.0
    """Seconds from one decision to the next. Below 1, replicas report as often: a rise is known sooner, and Ray Serve's
    controller has more to do."""
    utilization: float = 0.7
    """Share of a replica's measured capacity that is planned with: the rest is for bursts. ``slo`` begins with it."""
    ttft_target_s: float = 2.0
    """The time to the first token that is to be kept, in seconds."""
    tpot_target_s: float = 0.2
    """The time of each further token that is to be kept, in seconds."""
    slo_percentile: float = 99.0
    """The share of requests, in percent, that is to keep the targets."""
    short_window_s: float = 20.0
    """Arrivals are counted over this window, where they come faster than over ``long_window_s``: what rises is seen."""
    long_window_s: float = 60.0
    """Arrivals are counted over this window otherwise."""
    queue_drain_s: float = 10.0
    """The fleet is large enough to compute the prompts that wait within this time."""
    tolerance_fraction: float = 0.1
    """A wish that differs from the present size by less changes nothing."""
    scale_down_window_s: float = 180.0
    """A replica leaves when the largest wish of this time would do without it; longer than ``long_window_s``."""
    hold_s: float = 60.0
    """After replicas left, none is added for this time, unless the wish is urgent (twice the tolerance)."""
    surge_fraction: float = 1.0
    """Replicas that start at the same time, as a share of those that run; 4 may always."""
    scale_to_zero_s: float = 300.0
    """Where min_replicas is 0: seconds without a request after which all leave, those before the last one after
    ``scale_down_window_s`` where the policy still expects requests. ``requests`` has ``downscale_delay_s`` for it."""
    stale_after_s: float = 30.0
    """Metrics older than this move nothing; the size that is there is held."""
    forecast_bin_s: float = 10.0
    """``forecast``: arrivals are summed over spans of this length."""
    forecast_quantile: float = 0.99
    """``forecast``: what is expected is exceeded, as in the past, this seldom: 0.99 is one span of a hundred."""
    forecast_utilization: float = 0.65
    """``forecast``: share of capacity that the expected load may take after a surprise: a load that was not expected,
    or a target that was missed."""
    forecast_max_utilization: float = 0.95
    """``forecast``: what that share creeps up to while nothing surprises; the bursts are in what is expected."""
    forecast_memory_s: float = 3600.0
    """``forecast``: how far that past reaches."""
    target_ongoing_requests: float = 2.0
    """``requests``: requests that one replica should have, waiting ones included (Ray Serve's default)."""
    look_back_s: float = 30.0
    """``requests``: requests are averaged over this time."""
    upscale_delay_s: float = 30.0
    """``requests``: the wish for more must last so long."""
    downscale_delay_s: float = 600.0
    """``requests``: the wish for fewer must last so long."""

    def __post_init__(self) -> None:
        rules = [
            ("min_replicas", self.min_replicas >= 0, ">= 0"),
            ("max_replicas", self.max_replicas >= max(1, self.min_replicas), ">= 1 and >= autoscale.min_replicas"),
            ("start_s", 0 <= self.start_s < math.inf, ">= 0"),
            ("interval_s", 0 < self.interval_s < math.inf, "> 0"),
            ("utilization", 0 < self.utilization <= 1, "in (0, 1]"),
            ("ttft_target_s", 0 < self.ttft_target_s < math.inf, "> 0"),
            ("tpot_target_s", 0 < self.tpot_target_s < math.inf, "> 0"),
            ("slo_percentile", 0 < self.slo_percentile < 100, "in (0, 100)"),
            ("short_window_s", 0 < self.short_window_s < math.inf, "> 0"),
            ("long_window_s", self.short_window_s <= self.long_window_s < math.inf, ">= autoscale.short_window_s"),
            ("queue_drain_s", 0 < self.queue_drain_s < math.inf, "> 0"),
            ("tolerance_fraction", 0 <= self.tolerance_fraction < 1, "in [0, 1)"),
            (
                "scale_down_window_s",
                self.long_window_s < self.scale_down_window_s < math.inf,
                "> autoscale.long_window_s (else the fleet swings: it would forget its wish before it sees the load)",
            ),
            ("hold_s", 0 <= self.hold_s < math.inf, ">= 0"),
            ("surge_fraction", 0 <= self.surge_fraction < math.inf, ">= 0"),
            ("scale_to_zero_s", 0 <= self.scale_to_zero_s < math.inf, ">= 0"),
            ("stale_after_s", 0 < self.stale_after_s < math.inf, "> 0"),
            ("forecast_bin_s", 0 < self.forecast_bin_s < math.inf, "> 0"),
            ("forecast_quantile", 0 < self.forecast_quantile < 1, "in (0, 1)"),
            ("forecast_utilization", 0 < self.forecast_utilization <= 1, "in (0, 1]"),
            (
                "forecast_max_utilization",
                self.forecast_utilization <= self.forecast_max_utilization <= 1,
                "in [autoscale.forecast_utilization, 1]",
            ),
            (
                "forecast_memory_s",
                self.forecast_bin_s <= self.forecast_memory_s < math.inf,
                ">= autoscale.forecast_bin_s",
            ),
            ("target_ongoing_requests", 0 < self.target_ongoing_requests < math.inf, "> 0"),
            ("look_back_s", 0 < self.look_back_s < math.inf, "> 0"),
            ("upscale_delay_s", 0 <= self.upscale_delay_s < math.inf, ">= 0"),
            ("downscale_delay_s", 0 <= self.downscale_delay_s < math.inf, ">= 0"),
        ]
        for key in ("prefill_tokens_per_s", "decode_tokens_per_s"):
            value = getattr(self, key)
            rules.append((key, value is None or 0 < value < math.inf, "> 0 or null"))
        for key, holds, rule in rules:
            if not holds:
                raise UserError(f"autoscale.{key} must be {rule}, got {getattr(self, key)}")
