"""What Ray Serve is told of our policies, and what it tells them. Ray's own classes, no cluster."""

from __future__ import annotations

from typing import Any

import pytest
from ray.serve._private.common import DeploymentID, ReplicaID, TimeStampedValue
from ray.serve.config import AutoscalingContext

from conf import entry
from conf.schema.serve import ServeJob
from serve.notice import Size
from serve.scaling import Scaler, scaling_options, told

DEPLOYMENT = DeploymentID(name="replica", app_name="manta")


def job(*words: str) -> ServeJob:
    return entry.compose("serve", "model=demo", "access.open=true", *words)


def replica(name: str) -> ReplicaID:
    return ReplicaID(unique_id=name, deployment_id=DEPLOYMENT)


def series(*values: float, at_s: float = 100.0) -> list[TimeStampedValue]:
    return [TimeStampedValue(at_s - len(values) + 1 + n, value) for n, value in enumerate(values)]


def test_the_last_report_of_each_replica_is_heard_with_its_age():
    a, b, silent = replica("a"), replica("b"), replica("c")
    metrics = {
        "arrived": {a: series(1, 5), b: series(2, at_s=70.0)},
        "waiting": {a: series(0, 3), b: series(1, at_s=70.0)},
        "running_requests": {a: series(9), silent: series(4)},
    }
    heard = told(metrics, 101.0)
    assert {name: (each.age_s, each.report.arrived, each.report.waiting) for name, each in heard.items()} == {
        "a": (1.0, 5.0, 3.0),
        "b": (31.0, 2.0, 1.0),
    }


def test_a_fixed_number_of_replicas_is_no_affair_of_a_policy():
    assert scaling_options(job("engine.num_replicas=3"), "manta", 3) == {"num_replicas": 3}


def test_ray_serve_gets_bounds_without_delays_of_its_own_and_a_policy_that_it_can_make():
    options = scaling_options(job("engine.num_replicas=0..4", "autoscale=slo", "autoscale.ttft_target_s=3"), "manta", 2)
    config = options["autoscaling_config"]
    assert (config.min_replicas, config.initial_replicas, config.max_replicas) == (0, 2, 4)
    assert (config.upscale_delay_s, config.downscale_delay_s, config.downscale_to_zero_delay_s) == (0, 0, 0)
    kwargs = config.policy.policy_kwargs
    assert (kwargs["spec"]["policy"], kwargs["spec"]["ttft_target_s"], kwargs["max_num_seqs"]) == ("slo", 3.0, 256)
    assert config.policy.get_policy()(**kwargs)


@pytest.mark.parametrize("interval_s, report_s", [(0.01, 0.1), (0.5, 0.5), (1.0, 1.0), (10.0, 1.0)])
def test_replicas_report_as_often_as_it_decides_and_every_second_at_least(interval_s: float, report_s: float):
    words = ("engine.num_replicas=0..4", f"autoscale.interval_s={interval_s}")
    assert scaling_options(job(*words), "manta", 1)["autoscaling_config"].metrics_interval_s == report_s


class Fleet:
    """Replicas as Ray Serve's controller shows them to a policy."""

    def __init__(self, *words: str) -> None:
        self.now_s, self.target, self.told = 1000.0, 1, []
        self.counts = {"arrived": 0.0, "prompt_tokens": 0.0, "in_flight": 0.0}
        config = scaling_options(job("engine.num_replicas=0..4", "autoscale=tokens", *words), "manta", 1)[
            "autoscaling_config"
        ]
        self.scaler = Scaler(**config.policy.policy_kwargs, tell=self._hear, clock=lambda: self.now_s)

    def _hear(self, name: str, size: Size) -> None:
        assert name == "manta"
        self.told.append(size)

    def step(self, seconds: float, running: int, queued: float = 0.0) -> int:
        self.now_s += seconds
        replicas = [replica(f"r{number}") for number in range(running)]
        speed = {"prefill_tokens_per_s": 1000.0, "decode_tokens_per_s": 1000.0}
        values = {**self.counts, **speed}
        metrics: Any = {
            name: {replicas[0]: series(value, at_s=self.now_s)} for name, value in values.items() if replicas
        }
        context = AutoscalingContext(
            deployment_id=DEPLOYMENT,
            deployment_name="replica",
            app_name="manta",
            current_num_replicas=running,
            target_num_replicas=self.target,
            running_replicas=replicas,
            total_num_requests=queued,
            total_queued_requests=queued,
            aggregated_metrics=None,
            raw_metrics=metrics,
            capacity_adjusted_min_replicas=0,
            capacity_adjusted_max_replicas=4,
            policy_state={},
            last_scale_up_time=None,
            last_scale_down_time=None,
            current_time=self.now_s,
            config=None,
        )
        self.target = self.scaler(context)[0]
        return self.target


def test_a_rise_makes_more_replicas_and_the_reason_is_told_once():
    fleet = Fleet()
    assert fleet.step(0, running=1) == 1
    fleet.counts |= {"arrived": 400.0, "prompt_tokens": 16000.0}
    assert fleet.step(0.1, running=1) == 1, "not before autoscale.interval_s"
    assert fleet.step(2, running=1) == 4
    assert fleet.step(0.1, running=1) == 4
    assert [(size.was, size.target) for size in fleet.told] == [(1, 1), (1, 4)]
    assert "replicas are needed" in fleet.told[-1].reason


def test_a_service_that_sleeps_and_is_woken_says_so():
    fleet = Fleet("autoscale.scale_to_zero_s=10")
    for _ in range(200):
        fleet.step(2, running=1)
    assert fleet.target == 0
    fleet.target = 1  # Ray Serve's doing
    assert fleet.step(2, running=1, queued=1) == 1
    assert fleet.told[-1] == Size(was=0, target=1, reason="woken by a request", at_s=fleet.now_s)


def test_replicas_that_say_nothing_hold_the_fleet():
    fleet = Fleet()
    assert [fleet.step(2, running=3, queued=500.0) for _ in range(5)] == [1] * 5
