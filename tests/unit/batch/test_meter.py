"""What a job tells Prometheus: what replicas report, each thing once, and the units that are written."""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest

from conf import metrics
from conf.metrics import Kind, Metric
from conf.schema.batch import BatchJob
from conf.schema.cluster import ClusterSpec
from conf.schema.engine import Device, EngineKind, EngineSpec
from pipelines.batch.attribution import Cause, Share, attribute
from pipelines.batch.cost import cost_of, engine_price_per_s
from pipelines.batch.meter import TELL_S, Meter
from pipelines.batch.monitor import JobState, Monitor, ReplicaReport
from pipelines.batch.timeline import Timeline
from pipelines.ledger.mark import Mark
from serve.engine.protocol import EngineStats


class Kept:
    """What Ray would export."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, ...], float] = defaultdict(float)
        self.now_s = 0.0

    def make(self, metric: Metric) -> Any:
        kept = self

        class One:
            def _key(self, tags: dict[str, str]) -> tuple[str, ...]:
                assert tuple(tags) == metric.labels
                assert (tags["model"], tags["run"]) == ("small", "0a1b")
                return (metric.name, *list(tags.values())[2:])

            def inc(self, value: float, tags: dict[str, str]) -> None:
                assert metric.kind is Kind.counter
                assert value > 0  # Ray refuses others
                kept.values[self._key(tags)] += value

            def set(self, value: float, tags: dict[str, str]) -> None:
                assert metric.kind is Kind.gauge
                kept.values[self._key(tags)] = value

        return One()

    def of(self, metric: Metric, *labels: str) -> float | None:
        return self.values.get((metric.name, *labels))


@pytest.fixture
def kept() -> Kept:
    return Kept()


def meter(kept: Kept, price: float | None = None) -> Meter:
    return Meter("small", "0a1b", 100, price, make=kept.make, clock=lambda: kept.now_s)


def report(name: str, rows: int, running: int = 3) -> ReplicaReport:
    engine = EngineStats(
        completions=rows, prompt_tokens=10 * rows, cached_tokens=rows, completion_tokens=5 * rows, running=running
    )
    return ReplicaReport(replica=name, engine=engine, ready_at=1.0, found=2)


def test_totals_rise_by_what_is_new_and_never_fall(kept: Kept):
    it = meter(kept)
    it.tell(JobState(replicas={"a": report("a", 4), "b": report("b", 1)}), [])
    it.tell(JobState(replicas={"a": report("a", 4), "b": report("b", 9)}), [])
    assert (kept.of(metrics.BATCH_ENGINE_ROWS, "a"), kept.of(metrics.BATCH_ENGINE_ROWS, "b")) == (6, 11)
    assert kept.of(metrics.BATCH_PROMPT_TOKENS, "b") == 90
    assert kept.of(metrics.BATCH_CACHED_TOKENS, "b") == 9
    assert kept.of(metrics.BATCH_COMPLETION_TOKENS, "b") == 45
    assert kept.of(metrics.BATCH_RUNNING, "b") == 3
    assert kept.of(metrics.BATCH_READY) == 2
    assert kept.of(metrics.BATCH_PENDING) == 100
    assert kept.of(metrics.BATCH_RESTARTS) is None
    it.tell(JobState(replicas={"c": report("c", 2)}, restarts=1), [])  # both died, another one came
    assert kept.of(metrics.BATCH_ENGINE_ROWS, "b") == 11
    assert kept.of(metrics.BATCH_ENGINE_ROWS, "c") == 4
    assert kept.of(metrics.BATCH_RESTARTS) == 1


def test_written_units_count_by_outcome_and_error(kept: Kept):
    it = meter(kept)
    counts = {"answers_bytes": 1, "failed_bytes": 1, "fingerprint": "f", "run": "r"}
    it.wrote(Mark(unit="u", answers=7, failed=3, errors={"bad": (2, "m"), "worse": (1, "m")}, **counts))
    it.wrote(Mark(unit="v", answers=1, failed=0, **counts))
    assert kept.of(metrics.BATCH_ROWS, "answered") == 8
    assert kept.of(metrics.BATCH_ROWS, "failed") == 3
    assert kept.of(metrics.BATCH_FAILED, "bad") == 2
    assert kept.of(metrics.BATCH_FAILED, "worse") == 1


def test_time_and_cost_are_those_of_the_engines(kept: Kept):
    timeline = Timeline(num_replicas=2, began_at=0.0)
    timeline.begin()
    timeline.begin()
    timeline.hear(ReplicaReport(replica="a", ready_at=4.0, engine=EngineStats(running=8), slots=8), 4.0)
    timeline.hear(ReplicaReport(replica="a", ready_at=4.0, engine=EngineStats(running=8), slots=8), 10.0)
    meter(kept, price=0.5).tell(JobState(), attribute(timeline.until(10.0)))
    seconds = {cause.value: kept.of(metrics.BATCH_SECONDS, cause.value) for cause in Cause}
    assert seconds == {"start_up": 14, "computing": 6, "starved": 0, "tail": 0, "retries": 0}
    assert kept.of(metrics.BATCH_COST) == 0.5 * 20


def test_without_a_price_there_is_no_cost(kept: Kept):
    meter(kept).tell(JobState(), [])
    assert kept.of(metrics.BATCH_COST) is None


def test_it_is_told_once_a_second(kept: Kept):
    it = meter(kept)
    assert it.is_due
    it.tell(JobState(), [])
    kept.now_s = TELL_S / 2
    assert not it.is_due
    kept.now_s = TELL_S
    assert it.is_due


def test_a_look_at_the_time_so_far_changes_nothing(monkeypatch: pytest.MonkeyPatch):
    at = 0.0
    monkeypatch.setattr("pipelines.batch.monitor.now", lambda: at)
    looked, left = Monitor(1, 3), Monitor(1, 3)
    for each in (looked, left):
        each.may_start()
    for step in range(1, 40):
        at = float(step)
        for each in (looked, left):
            held = ReplicaReport(replica="a", ready_at=1.0, engine=EngineStats(running=8), slots=8, last_request_at=at)
            if step % 5 == 0:  # so silent that it counts as gone where the job ended now
                each.report(held)
        looked.shares()
    assert attribute(looked.timeline()) == attribute(left.timeline())


@pytest.mark.parametrize(
    "engine,device,num_engines,price_per_s",
    [
        ({}, Device.cpu, 2, 0.5),  # two engines share the machine
        ({}, Device.cuda, 8, 1.0),
        ({"tensor_parallel_size": 4}, Device.cuda, 2, 4.0),
        ({"engines_per_device": 2, "kv_cache_bytes": 1 << 30}, Device.cuda, 4, 0.5),
        ({"kind": EngineKind.service}, Device.cpu, 1, None),  # somebody else pays for it
    ],
)
def test_an_engine_costs_what_its_devices_do(
    engine: dict[str, Any], device: Device, num_engines: int, price_per_s: float | None
):
    job = BatchJob(engine=EngineSpec(**{"kind": EngineKind.vllm, **engine}), cluster=ClusterSpec(price_per_hour=3600))
    plan: Any = SimpleNamespace(job=job, device=device)
    assert engine_price_per_s(plan, num_engines) == price_per_s
    share = Share(replicas=("a",), seconds=dict.fromkeys(Cause, 2.0))
    assert cost_of(plan, num_engines, [share, share]) == (None if price_per_s is None else 20 * price_per_s)


def test_nobody_knows_what_a_device_costs_until_told():
    plan: Any = SimpleNamespace(job=BatchJob(), device=Device.cpu)
    assert engine_price_per_s(plan, 1) is None
