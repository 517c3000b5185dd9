"""Our policies in Ray Serve's controller: it asks how many replicas there should be, `serve.autoscale` answers.

In the controller, because it alone knows the requests that wait in front of replicas, because it goes on when the
process of `manta serve` is lost, and because replicas report to it already.

Source: ray 2.60, ray/serve/_private/autoscaling_state.py and autoscaling_policy.py (what is around a policy).
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec

from conf.schema.autoscale import AutoscaleSpec
from conf.schema.serve import ServeJob
from serve.autoscale.observation import Decision
from serve.autoscale.policy import begin, decide
from serve.autoscale.watch import Told, Watch, read_report
from serve.notice import Size, write_notice

REPORT_S = 1.0
"""Replicas and proxies tell the controller at least this often, and as often as it decides."""
LOOP_S = 0.1
"""Ray Serve's controller decides no more often (RAY_SERVE_CONTROL_LOOP_INTERVAL_S)."""
LOOK_BACK_S = 2.0
"""Over this time it averages the requests that wait."""


class Scaler:
    """What Ray Serve's controller calls ten times a second. It makes a new one whenever the service is deployed."""

    def __init__(
        self,
        name: str,
        spec: dict[str, Any],
        max_num_seqs: int,
        tell: Callable[[str, Size], None] = write_notice,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Args.

        name: of the service.
        spec: its `AutoscaleSpec`, as JSON takes it.
        max_num_seqs: requests that a replica computes at a time.
        tell: takes what was decided.
        clock: seconds since the epoch, as reports have them.
        """
        self._name = name
        self._spec = msgspec.convert(spec, AutoscaleSpec)
        self._memory = begin(self._spec)
        self._write, self._clock = tell, clock
        self._watch = Watch(self._spec, max_num_seqs, clock())
        self._target: int | None = None
        self._next_s = 0.0

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """Decides, where it is time to.

        Args:
            context: ray.serve.config.AutoscalingContext.
        """
        now_s, target = self._clock(), context.target_num_replicas
        if now_s < self._next_s:
            return target, {}
        self._next_s = now_s + self._spec.interval_s
        if self._target is not None and target != self._target:
            # none ran and a request came: Ray Serve starts one without asking
            self._tell(self._target, Decision(target=target, reason="woken by a request"))
        seen = self._watch.see(
            now_s,
            target=target,
            running=[replica.unique_id for replica in context.running_replicas],
            told=told(context.raw_metrics, now_s),
            queued=context.total_queued_requests,
        )
        decision, self._memory = decide(self._spec, seen, self._memory)
        if decision.target != self._target:
            self._tell(target, decision)
        return decision.target, {}

    def _tell(self, was: int, decision: Decision) -> None:
        self._target = decision.target
        self._write(self._name, Size(was=was, target=decision.target, reason=decision.reason, at_s=self._clock()))


def told(metrics: dict[str, dict[Any, Any]], now_s: float) -> dict[str, Told]:
    """Returns each replica's last report.

    Args:
        metrics: of each name, by replica, a series of values with timestamps.
        now_s: since the epoch.
    """
    values: dict[str, dict[str, float]] = {}
    at_s: dict[str, float] = {}
    for name, replicas in metrics.items():
        for replica, series in replicas.items():
            if series and (key := getattr(replica, "unique_id", None)):
                values.setdefault(key, {})[name] = series[-1].value
                at_s[key] = max(at_s.get(key, 0.0), series[-1].timestamp)
    # a report that says nothing of arrivals is Ray Serve's own
    return {key: Told(max(0.0, now_s - at_s[key]), read_report(of)) for key, of in values.items() if "arrived" in of}


def scaling_options(job: ServeJob, app: str, num_replicas: int) -> dict[str, Any]:
    """Returns how many replicas a deployment of Ray Serve has.

    Args:
        job: the service.
        app: what Ray Serve calls it.
        num_replicas: that it begins with, or always has.
    """
    engine = job.engine
    if not engine.is_elastic:
        return {"num_replicas": num_replicas}
    from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

    spec = replace(job.autoscale, min_replicas=engine.min_replicas, max_replicas=engine.max_replicas)
    policy = AutoscalingPolicy(
        policy_function="serve.scaling:Scaler",
        policy_kwargs={
            "name": app,
            "spec": msgspec.to_builtins(spec),
            "max_num_seqs": engine.max_num_seqs,
        },
    )
    with warnings.catch_warnings():
        # metrics_interval_s is to give way to variables of the environment; it is the one that is told to all
        warnings.simplefilter("ignore", DeprecationWarning)
        config = AutoscalingConfig(
            min_replicas=engine.min_replicas,
            max_replicas=engine.max_replicas,
            initial_replicas=num_replicas,
            upscale_delay_s=0,
            downscale_delay_s=0,
            downscale_to_zero_delay_s=0,
            metrics_interval_s=min(REPORT_S, max(LOOP_S, spec.interval_s)),
            look_back_period_s=LOOK_BACK_S,
            policy=policy,
        )
    return {"autoscaling_config": config}
