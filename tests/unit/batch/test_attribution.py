"""Every second of every engine's place has one cause."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.batch.attribution import Cause, Share, attribute, in_words, plain_shares, total
from pipelines.batch.monitor import ReplicaReport
from pipelines.batch.timeline import Timeline
from serve.engine.protocol import EngineStats


def hear(timeline: Timeline, name: str, at: float, running: int, **fields: float) -> None:
    engine = EngineStats(running=running)
    given = {"slots": 16, "ready_at": at, **fields}
    timeline.hear(ReplicaReport(replica=name, engine=engine, **given), at)  # type: ignore[arg-type]


def seconds(share: Share) -> dict[str, float]:
    return {cause.value: pytest.approx(s) for cause, s in share.seconds.items() if s > 1e-9}


def test_a_quiet_job() -> None:
    timeline = Timeline(num_replicas=1, began_at=1000.0)
    hear(timeline, "a", 1010.0, 0, ready_at=1010.0)
    hear(timeline, "a", 1014.0, 0, ready_at=1010.0)  # nothing to do, input remains
    hear(timeline, "a", 1014.0, 16, ready_at=1010.0, last_request_at=1030.0)
    hear(timeline, "a", 1040.0, 16, ready_at=1010.0, last_request_at=1030.0)
    hear(timeline, "a", 1040.0, 2, ready_at=1010.0, last_request_at=1030.0)  # stragglers: a quarter of half the slots
    hear(timeline, "a", 1048.0, 2, ready_at=1010.0, last_request_at=1030.0)
    (share,) = attribute(timeline.close(1048.0))
    assert seconds(share) == {"start_up": 10, "starved": 4, "computing": 26 + 2, "tail": 6}
    assert share.replicas == ("a",)


def test_input_remains_until_the_last_of_it_went_to_any_engine() -> None:
    timeline = Timeline(num_replicas=2, began_at=0.0)
    for at in (0.0, 100.0):
        hear(timeline, "idle", at, 0, ready_at=0.0)
        hear(timeline, "busy", at, 16, ready_at=0.0, last_request_at=70.0)
    idle, busy = attribute(timeline.close(100.0))
    assert seconds(idle) == {"starved": 70, "tail": 30}
    assert busy.seconds[Cause.computing] == pytest.approx(100)


def test_a_successor_sits_in_the_dead_ones_place_and_a_late_starter_in_its_own() -> None:
    timeline = Timeline(num_replicas=2, began_at=0.0)
    hear(timeline, "a", 0.0, 16)
    timeline.died("a", 10.0)
    hear(timeline, "late", 12.0, 16, began_at=1.0)
    hear(timeline, "successor", 25.0, 16, began_at=11.0)
    first, second = attribute(timeline.close(26.0))
    assert (first.replicas, second.replicas) == (("a", "successor"), ("late",))
    assert first.seconds[Cause.retries] == pytest.approx(15)
    assert second.seconds[Cause.start_up] == pytest.approx(12)


def test_an_engine_that_is_not_replaced_and_one_that_ends_without_a_word_leave_retries() -> None:
    timeline = Timeline(num_replicas=1, began_at=0.0)
    hear(timeline, "a", 0.0, 16)
    hear(timeline, "a", 10.0, 16, ready_at=0.0)
    hear(timeline, "b", 30.0, 16, began_at=12.0)  # nobody said that a had died
    timeline.died("b", 35.0)
    (share,) = attribute(timeline.close(40.0))
    assert share.replicas == ("a", "b")
    assert seconds(share) == {"computing": 10 + 5, "retries": 20 + 5}


def test_a_death_that_nobody_heard_of_in_a_short_job_ends_when_the_successor_begins() -> None:
    timeline = Timeline(num_replicas=1, began_at=0.0)
    hear(timeline, "a", 0.0, 16)
    hear(timeline, "a", 1.0, 16, ready_at=0.0)
    hear(timeline, "b", 2.0, 16, began_at=1.5)
    (share,) = attribute(timeline.close(3.0))
    assert seconds(share) == {"computing": 1.5 + 1, "retries": 0.5}


def test_suspects_run_alone_are_retries() -> None:
    timeline = Timeline(num_replicas=1, began_at=0.0)
    hear(timeline, "a", 0.0, 1, alone=1)
    hear(timeline, "a", 10.0, 1, ready_at=0.0, alone=1)
    (share,) = attribute(timeline.close(10.0))
    assert seconds(share) == {"retries": 10}


def test_engines_that_never_became_ready_were_starting() -> None:
    timeline = Timeline(num_replicas=3, began_at=0.0)
    timeline.begin()
    timeline.begin()  # the third was not asked for
    shares = attribute(timeline.close(7.0))
    assert [seconds(share) for share in shares] == [{"start_up": 7}] * 2
    assert seconds(total(shares)) == {"start_up": 14}


events = st.lists(
    st.tuples(
        st.floats(0, 30),
        st.sampled_from("abcdef"),
        st.integers(0, 40),
        st.booleans(),
        st.booleans(),
        st.sampled_from(["hear", "hear", "hear", "die"]),
        st.floats(-5, 40),
    ),
    max_size=60,
)


@given(st.integers(1, 4), events, st.floats(-10, 40))
def test_the_parts_of_any_history_add_up_to_engines_times_length(num_replicas: int, history: list, rest: float) -> None:
    timeline = Timeline(num_replicas=num_replicas, began_at=50.0)
    for _ in range(num_replicas + 1):  # one is a successor
        timeline.begin()
    at = 50.0
    for passed_s, name, running, is_fed, is_alone, what, off in history:
        at += passed_s
        if what == "die":
            timeline.died(name, at)
            continue
        fed = {"last_request_at": at + off} if is_fed else {}
        hear(timeline, name, at, running, ready_at=at - off, began_at=at - 2 * off, alone=is_alone, **fed)
    timeline.close(at + rest)
    shares = attribute(timeline)
    assert len(shares) == num_replicas
    assert sorted(name for share in shares for name in share.replicas) == sorted(timeline.lives)
    for share in shares:
        assert share.total_s == pytest.approx(timeline.wall_s, abs=1e-6)
        assert all(s >= -1e-6 for s in share.seconds.values())
    assert total(shares).total_s == pytest.approx(num_replicas * timeline.wall_s, abs=1e-5)


def share_of(**parts: float) -> Share:
    return Share(replicas=("a",), seconds={cause: parts.get(cause.value, 0.0) for cause in Cause})


def test_a_line_for_the_summary() -> None:
    assert in_words(share_of(computing=92, starved=3, start_up=4.6, tail=0.4)) == (
        "92 % computing, 5 % start-up, 3 % starved"
    )
    assert in_words(share_of()) == ""


def test_the_record_has_seconds_and_fractions_of_all_and_of_each() -> None:
    plain = plain_shares([share_of(computing=3), share_of(tail=1)])
    assert plain["seconds"] == {"start_up": 0, "computing": 3, "starved": 0, "tail": 1, "retries": 0}
    assert plain["fractions"]["computing"] == 0.75
    assert [each["fractions"]["tail"] for each in plain["replicas"]] == [0, 1]
    assert plain_shares([])["fractions"]["tail"] == 0
