"""What a run comes to: targets kept, replica-hours, cost, changes of direction."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from conf.schema.autoscale import AutoscaleSpec
from conf.schema.simulate import SimulateJob
from pipelines.simulate.fleet import Decide, Fleet, Run
from pipelines.simulate.replica import capacity_of
from pipelines.simulate.trace import Trace
from serve.autoscale.demand import busy_replicas
from serve.autoscale.observation import Capacity, Decision
from serve.autoscale.policy import begin, decide

PEAK_S = 10
"""A fixed fleet for the peak has replicas for the busiest span of this length."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """A run in figures."""

    name: str
    requests: int
    dropped: int
    """Requests without an end. Always 0: a fault of the simulator otherwise."""
    ttft_attained: float
    """Share of requests whose first token came in time."""
    tpot_attained: float
    """Share of requests of two tokens and more whose further tokens came in time, on average."""
    violations: int
    """Requests that missed one of the two."""
    ttft_p50_s: float
    ttft_p99_s: float
    tpot_p99_s: float
    replica_hours: float
    busy_fraction: float
    """Share of the replicas' time in which they computed."""
    cost: float | None
    mean_replicas: float
    most_replicas: int
    """Most replicas at a time, those that start and drain included."""
    direction_changes: int
    """Times that the fleet, having grown, shrank, or the other way round."""
    seconds: float

    def plain(self) -> dict[str, Any]:
        """Returns it as JSON takes it."""
        return {key: None if isinstance(v, float) and math.isnan(v) else v for key, v in asdict(self).items()}


def follow_policy(spec: AutoscaleSpec) -> Decide:
    """Returns a policy that remembers what it is told to."""
    memory = begin(spec)

    def step(seen: Any) -> Decision:
        nonlocal memory
        decision, memory = decide(spec, seen, memory)
        return decision

    return step


def fixed(replicas: int) -> Decide:
    """Returns what never changes a fleet."""
    return lambda seen: Decision(target=replicas, reason="fixed")


def simulate(trace: Trace, job: SimulateJob, step: Decide, initial: int) -> Run:
    """Replays a trace against a policy; see `Fleet`."""
    return Fleet(trace, job.replica, job.autoscale, initial, job.simulate.report_s).run(step)


def busy_series(trace: Trace, job: SimulateJob, span_s: float = PEAK_S) -> np.ndarray:
    """Returns the arriving load of each span of time in replicas that it would keep busy; the last may be cut short."""
    capacity = capacity_for(trace, job)
    spans = (trace.arrival_s // span_s).astype(np.int64)
    prompts = np.bincount(spans, trace.prompt) / span_s
    answers = np.bincount(spans, trace.answer) / span_s
    return np.array([busy_replicas(p, a, capacity) for p, a in zip(prompts, answers, strict=True)])


def capacity_for(trace: Trace, job: SimulateJob) -> Capacity:
    """Returns what a replica does with requests of the trace's lengths."""
    return capacity_of(job.replica, job.autoscale.tpot_target_s, float((trace.prompt + trace.answer).mean()))


def peak_replicas(trace: Trace, job: SimulateJob) -> int:
    """Returns the fixed fleet that has ``utilization`` in the busiest span."""
    return max(1, math.ceil(float(busy_series(trace, job).max()) / job.autoscale.utilization))


def mean_replicas(trace: Trace, job: SimulateJob) -> int:
    """Returns the fixed fleet that has ``utilization`` on average."""
    return max(1, math.ceil(float(busy_series(trace, job).mean()) / job.autoscale.utilization))


def first_replicas(trace: Trace, job: SimulateJob) -> int:
    """Returns the fleet that the trace begins with: for the busiest span of its first minute, within the bounds."""
    if job.simulate.initial_replicas is not None:
        return job.simulate.initial_replicas
    first = busy_series(trace, job)[: 60 // PEAK_S].max()
    bounds = job.autoscale
    return min(max(math.ceil(float(first) / bounds.utilization), bounds.min_replicas, 1), bounds.max_replicas)


def score(name: str, trace: Trace, run: Run, job: SimulateJob) -> Score:
    """Returns the figures of a run."""
    ttft = run.first_s - trace.arrival_s
    is_long = trace.answer > 1
    tpot = (run.end_s - run.first_s)[is_long] / (trace.answer[is_long] - 1)
    late = ~(ttft <= job.autoscale.ttft_target_s)
    slow = np.zeros(len(trace), dtype=bool)
    slow[is_long] = ~(tpot <= job.autoscale.tpot_target_s)
    hours = run.replica_s / 3600
    price = job.cluster.price_per_hour
    sizes = [target for _, target, *_ in run.ticks]
    return Score(
        name=name,
        requests=len(trace),
        dropped=int(np.isnan(run.end_s).sum()),
        ttft_attained=float(1 - late.mean()),
        tpot_attained=float(1 - slow[is_long].mean()) if is_long.any() else 1.0,
        violations=int((late | slow).sum()),
        ttft_p50_s=float(np.percentile(ttft, 50)),
        ttft_p99_s=float(np.percentile(ttft, 99)),
        tpot_p99_s=float(np.percentile(tpot, 99)) if len(tpot) else math.nan,
        replica_hours=hours,
        busy_fraction=run.busy_s / run.replica_s if run.replica_s else 0.0,
        cost=None if price is None else hours * job.replica.num_devices * price,
        mean_replicas=run.replica_s / run.seconds if run.seconds else 0.0,
        most_replicas=max(running + starting + draining for _, _, running, starting, draining, _ in run.ticks),
        direction_changes=direction_changes(sizes),
        seconds=run.seconds,
    )


def direction_changes(sizes: list[int]) -> int:
    """Returns how often a series that rose falls next, or the other way round."""
    steps = np.sign(np.diff(sizes))
    steps = steps[steps != 0]
    return int((steps[1:] != steps[:-1]).sum())
