"""Samples of replicas: few, whatever the job's length, and none of the totals lost."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.batch.monitor import Monitor, ReplicaReport
from pipelines.batch.timeline import DEAD_POINTS, MAX_POINTS, SILENT_S, Sample, Series, Timeline, fill_fraction
from serve.engine.protocol import EngineStats


def report(name: str = "a", running: int = 8, rows: int = 0, **fields: float) -> ReplicaReport:
    engine = EngineStats(running=running, completions=rows, prompt_tokens=2 * rows, completion_tokens=3 * rows)
    return ReplicaReport(replica=name, engine=engine, **{"slots": 16, "ready_at": 0.0, **fields})  # type: ignore[arg-type]


@given(
    st.integers(4, 40),
    st.lists(st.tuples(st.floats(0, 100), st.integers(0, 9)), min_size=1, max_size=300),
)
def test_a_series_is_bounded_and_keeps_its_ends_its_order_and_its_totals(
    limit: int, steps: list[tuple[float, int]]
) -> None:
    series, added = Series(limit), []
    at_s, rows = 0.0, 0
    for passed_s, more in steps:
        at_s, rows = at_s + passed_s, rows + more
        added.append(Sample(at_s=at_s, rows=rows, prompt_tokens=2 * rows, filled_s=at_s / 2))
        series.add(added[-1])
        assert len(series.points) <= limit
        assert (series.points[0].at_s, series.points[-1]) == (added[0].at_s if len(added) > 1 else at_s, added[-1])
    assert set(series.points) <= set(added)
    for first, second in zip(series.points, series.points[1:], strict=False):
        assert first.at_s <= second.at_s
        assert first.rows <= second.rows
    assert series.at(at_s) == (2 * rows, 0, at_s / 2, 0)


def test_a_long_series_is_equally_dense_from_end_to_end() -> None:
    series = Series(limit=100)
    for number in range(100_000):
        series.add(Sample(at_s=number / 2))
    gaps = [b.at_s - a.at_s for a, b in zip(series.points[:-1], series.points[1:-1], strict=False)]
    assert 40 <= len(series.points) <= 100
    assert max(gaps) <= 2 * min(gaps)


def test_between_two_samples_totals_are_linear_and_outside_they_stand_still() -> None:
    series = Series()
    series.add(Sample(at_s=10.0))
    series.add(Sample(at_s=20.0, prompt_tokens=100, completion_tokens=10, filled_s=5.0, alone_s=1.0))
    assert series.at(3.0) == (0, 0, 0, 0)
    assert series.at(15.0) == (50, 5, 2.5, 0.5)
    assert series.at(99.0) == (100, 10, 5.0, 1.0)


@pytest.mark.parametrize(
    "running, slots, fraction", [(0, 16, 0), (4, 16, 0.5), (8, 16, 1), (99, 16, 1), (1, 1, 1), (0, 1, 0)]
)
def test_half_of_the_slots_is_full(running: int, slots: int, fraction: float) -> None:
    assert fill_fraction(running, slots) == fraction


def test_what_is_heard_adds_up_from_when_the_replica_was_ready() -> None:
    timeline = Timeline(num_replicas=1, began_at=100.0)
    timeline.hear(report(ready_at=None), 101.0)  # type: ignore[arg-type]
    assert not timeline.lives
    timeline.hear(report(running=0, ready_at=110.0, began_at=103.0), 110.0)
    timeline.hear(report(running=8, rows=0, ready_at=110.0, last_request_at=111.0), 112.0)  # from 0 to 1: half
    timeline.hear(report(running=8, rows=5, ready_at=110.0, last_request_at=111.0), 120.0)  # full
    timeline.hear(report(running=4, rows=9, ready_at=110.0, last_request_at=111.0), 122.0)  # from 1 to a half
    life = timeline.lives["a"]
    assert (life.began_s, life.ready_s, life.fed_s) == (3.0, 10.0, 11.0)
    assert life.last == Sample(
        at_s=22.0, running=4, rows=9, prompt_tokens=18, completion_tokens=27, filled_s=1 + 8 + 1.5
    )


def test_time_with_suspects_alone_is_not_time_in_which_it_is_full() -> None:
    timeline = Timeline(num_replicas=1, began_at=0.0)
    timeline.hear(report(alone=1), 0.0)
    timeline.hear(report(alone=1), 10.0)
    assert (timeline.lives["a"].last.filled_s, timeline.lives["a"].last.alone_s) == (0, 10)


def test_a_clock_that_goes_back_is_no_time() -> None:
    timeline = Timeline(num_replicas=1, began_at=100.0)
    timeline.hear(report(ready_at=100.0), 110.0)
    timeline.hear(report(ready_at=100.0), 90.0)
    assert timeline.lives["a"].last.at_s == 10.0


def test_who_holds_rows_and_says_no_more_is_dead_at_the_end_and_who_holds_none_is_idle() -> None:
    timeline = Timeline(num_replicas=3, began_at=0.0)
    timeline.hear(report("silent"), 10.0)
    timeline.hear(report("idle", running=0), 10.0)
    timeline.hear(report("busy"), 20.0 - SILENT_S)
    timeline.close(20.0)
    assert {name: life.ended_s for name, life in timeline.lives.items()} == {"silent": 10.0, "idle": None, "busy": None}
    assert timeline.lives["idle"].last.at_s == timeline.lives["busy"].last.at_s == timeline.wall_s == 20.0


def test_the_dead_are_kept_with_fewer_samples_and_stay_dead() -> None:
    timeline = Timeline(num_replicas=1, began_at=0.0)
    for number in range(2 * MAX_POINTS):
        timeline.hear(report(rows=number), number / 2)
    timeline.died("a", 5000.0)
    timeline.died("never heard of", 5000.0)
    timeline.hear(report(rows=10**9), 5001.0)
    life = timeline.close(6000.0).lives["a"]
    assert (life.ended_s, life.last.at_s, life.last.rows) == (5000.0, 5000.0, 2 * MAX_POINTS - 1)
    assert len(life.series.points) <= DEAD_POINTS


def test_the_monitor_ships_the_samples_only_when_asked() -> None:
    monitor = Monitor(num_replicas=1, max_restarts=1)
    size = []
    for number in range(500):
        monitor.report(report(rows=number))
        size.append(len(pickle.dumps(monitor.state())))
    assert size[-1] < size[0] + 100
    monitor.died("a", "x", 1)
    monitor.report(report("b"))
    assert list(monitor.timeline().lives) == ["a", "b"]
    assert not monitor.state().replicas.keys() & {"a"}
