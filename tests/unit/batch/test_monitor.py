"""What the driver sees of replicas, and when it gives up on engines that die."""

from __future__ import annotations

import pytest

from pipelines.batch import monitor as monitor_module
from pipelines.batch.monitor import MAX_WAIT_S, SILENT_S, Monitor, ReplicaReport
from serve.engine.protocol import EngineStats


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(monitor_module, "now", lambda: now[0])
    return now


def report(name: str, rows: int, rejected: int = 0, **fields: float) -> ReplicaReport:
    engine = EngineStats(completions=rows, rejections=rejected, prompt_tokens=2 * rows, completion_tokens=3 * rows)
    return ReplicaReport(replica=name, engine=engine, **fields)  # type: ignore[arg-type]


def test_replicas_are_added_up() -> None:
    monitor = Monitor(num_replicas=2, max_restarts=1)
    monitor.report(report("a", 3, rejected=1, ready_at=1.0, first_request_at=10.0, last_answer_at=14.0, found=5, bad=2))
    monitor.report(report("b", 4, first_request_at=11.0, last_answer_at=19.0, first_answer_at=12.0))
    seen = monitor.state()
    assert (seen.rows, seen.failed, seen.ready) == (3 + 1 + 5 + 4, 1 + 2, 1)
    assert (seen.prompt_tokens, seen.completion_tokens) == (14, 21)
    assert (seen.inference_s, seen.first_answer_at) == (9.0, 12.0)


def test_nothing_was_answered_before_there_was_a_report() -> None:
    seen = Monitor(num_replicas=2, max_restarts=1).state()
    assert (seen.rows, seen.inference_s, seen.first_answer_at) == (0, 0.0, None)


def test_replicas_are_told_to_stop() -> None:
    monitor = Monitor(num_replicas=1, max_restarts=1)
    assert monitor.report(report("a", 3)) is False
    monitor.stop()
    assert monitor.report(report("a", 4)) is True
    assert monitor.stopping()


def test_a_dead_replicas_counts_go_and_its_cause_stays() -> None:
    monitor = Monitor(num_replicas=1, max_restarts=1)
    monitor.report(report("a", 3))
    monitor.died("a", "out of memory", 3)
    monitor.died("b", "never reported", 0)
    assert monitor.state().rows == 0
    assert monitor.state().deaths == ["out of memory", "never reported"]


def test_the_first_engines_start_at_once_and_are_no_restarts() -> None:
    monitor = Monitor(num_replicas=3, max_restarts=1)
    assert [monitor.may_start() for _ in range(3)] == [0.0] * 3
    assert monitor.state().restarts == 0


def test_engines_that_die_and_answer_nothing_wait_longer_and_longer_until_there_are_too_many() -> None:
    monitor = Monitor(num_replicas=1, max_restarts=9)
    assert [monitor.may_start() for _ in range(11)] == [
        0.0,
        0.0,
        1.0,
        2.0,
        4.0,
        8.0,
        16.0,
        32.0,
        MAX_WAIT_S,
        60.0,
        None,
    ]
    assert monitor.state().is_given_up
    assert (monitor.state().restarts, monitor.state().fruitless) == (10, 10)


def test_a_report_that_comes_after_its_replica_died_does_not_count() -> None:
    monitor = Monitor(num_replicas=1, max_restarts=1)
    monitor.report(report("a", 3))
    monitor.died("a", "out of memory", 3)
    assert monitor.report(report("a", 3)) is True
    assert monitor.state().replicas == {}


def test_a_row_answered_in_between_begins_the_count_again(clock: list[float]) -> None:
    monitor = Monitor(num_replicas=1, max_restarts=2)
    monitor.may_start()
    for number in range(10):
        monitor.report(report(str(number), 1))
        monitor.died(str(number), "x", 1)
        assert monitor.may_start() == 0.0
    assert (monitor.state().restarts, monitor.state().is_given_up) == (10, False)


def test_answers_of_an_engine_that_ended_without_a_word_count(clock: list[float]) -> None:
    monitor = Monitor(num_replicas=1, max_restarts=1)
    monitor.may_start()
    for number in range(5):
        monitor.report(report(str(number), 1, ready_at=clock[0]))
        clock[0] += SILENT_S + 1
        assert monitor.may_start() == 0.0
        assert monitor.state().replicas == {}
    assert [life.ended_s for life in monitor.timeline().lives.values()] == [0.0, 4.0, 8.0, 12.0, 16.0]


def test_a_replica_that_reports_is_not_gone(clock: list[float]) -> None:
    monitor = Monitor(num_replicas=1, max_restarts=5)
    monitor.may_start()
    monitor.report(report("a", 1))
    clock[0] += SILENT_S - 1
    monitor.may_start()
    assert list(monitor.state().replicas) == ["a"]


def test_the_first_cause_of_a_failed_start_stays() -> None:
    monitor = Monitor(num_replicas=1, max_restarts=1)
    monitor.failed_to_start("no model")
    monitor.failed_to_start("later")
    assert monitor.state().start_failure == "no model"
