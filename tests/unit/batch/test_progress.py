from __future__ import annotations

import io

import pytest

from conf.schema.batch import ProgressSpec
from pipelines.batch.monitor import JobState, ReplicaReport
from pipelines.batch.progress import Lines, Rate, Readings, Silence, duration, make_display
from serve.engine.protocol import EngineStats


def report(name: str, rows: int, tokens: int = 0, **fields: float) -> ReplicaReport:
    engine = EngineStats(completions=rows, prompt_tokens=tokens, completion_tokens=2 * tokens)
    return ReplicaReport(replica=name, engine=engine, **fields)  # type: ignore[arg-type]


def state(rows: int, tokens: int = 0) -> JobState:
    return JobState(replicas={"a": report("a", rows, tokens, ready_at=1.0)})


@pytest.mark.parametrize(
    "seconds, text", [(None, "?"), (0, "0s"), (59.4, "59s"), (60, "1m00s"), (187, "3m07s"), (7500, "2h05m")]
)
def test_durations_read_well(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_a_rate_looks_back_over_its_window_only() -> None:
    rate = Rate(window_s=10)
    rate.add(0, 0)
    assert rate.per_second == 0
    for at in range(1, 101):
        rate.add(at, 0 if at <= 50 else (at - 50) * 8)
    assert rate.per_second == pytest.approx(8)


def test_readings_give_rows_tokens_and_the_time_to_go() -> None:
    readings = Readings(100)
    assert readings.eta_s is None
    assert readings.phase == "starting engines"
    readings.update(state(10, 1000), 0.0)
    readings.update(state(30, 3000), 2.0)
    assert (readings.rows, readings.phase) == (30, "rows")
    assert readings.eta_s == pytest.approx(7)
    assert readings.tokens == "1,000 in, 2,000 out tok/s"


def test_rows_computed_again_do_not_exceed_the_total() -> None:
    readings = Readings(10)
    readings.update(state(13), 0.0)
    assert readings.rows == 10


def test_lines_come_at_intervals() -> None:
    stream = io.StringIO()
    readings = Readings(100)
    readings.update(state(10), 0.0)
    slow = Lines(3600, stream)
    slow.show(readings)
    assert stream.getvalue() == ""
    Lines(1e-9, stream).show(readings)
    assert "10/100 rows" in stream.getvalue()


def test_no_terminal_gets_lines_and_quiet_gets_nothing() -> None:
    assert isinstance(make_display(ProgressSpec(), 5, io.StringIO()), Lines)
    assert isinstance(make_display(ProgressSpec(quiet=True), 5, io.StringIO()), Silence)
