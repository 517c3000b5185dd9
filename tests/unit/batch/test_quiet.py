from __future__ import annotations

from pipelines.batch.monitor import JobState, ReplicaReport
from pipelines.batch.quiet import QUIET_S, Quiet
from serve.engine.protocol import EngineStats


def state(*engines: EngineStats) -> JobState:
    return JobState(replicas={str(n): ReplicaReport(replica=str(n), engine=each) for n, each in enumerate(engines)})


def test_nothing_at_work_is_quiet_only_after_a_while() -> None:
    quiet, idle = Quiet(), state(EngineStats(completions=3), EngineStats())
    assert not quiet.holds(idle, 100.0)
    assert not quiet.holds(idle, 100.0 + QUIET_S - 0.1)
    assert quiet.holds(idle, 100.0 + QUIET_S)


def test_a_row_in_an_engine_and_one_that_has_just_ended_are_work() -> None:
    quiet = Quiet()
    assert not quiet.holds(state(EngineStats(running=1)), 0.0)
    assert not quiet.holds(state(EngineStats(running=1)), 60.0)
    assert not quiet.holds(state(EngineStats(completions=1)), 61.0)
    assert not quiet.holds(state(EngineStats(completions=2)), 60.0 + QUIET_S + 1)
    assert quiet.holds(state(EngineStats(completions=2)), 62.0 + 2 * QUIET_S)


def test_where_nobody_can_tell_there_is_no_work() -> None:
    quiet = Quiet()
    assert not quiet.holds(None, 7.0)
    assert quiet.holds(None, 7.0 + QUIET_S)
