"""The log of a unit in progress: what was paid for is kept, and who was in an engine that died is known.

One file, though it is long: what is true of a log in a folder is true of one in a bucket.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import fs as pafs

from pipelines.ledger import log as log_module
from pipelines.ledger.folder import Folder
from pipelines.ledger.log import History, LogWriter, drop_log, log_files, read_history
from pipelines.ledger.outcome import encode, plain_outcome
from pipelines.storage import Location, locate
from serve.engine.protocol import Outcome, Rejection

QUICK = settings(deadline=None, max_examples=100, database=None, derandomize=True)

UNIT, RUN = "0123456789ab", "run1"


@pytest.fixture
def local(tmp_path: Path) -> Folder:
    return Folder(root=locate(str(tmp_path / "out"), "output.path"), suffix="parquet")


@pytest.fixture
def bucket(tmp_path: Path) -> Folder:
    """Storage without appending."""
    tree = pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem())
    return Folder(root=Location(filesystem=tree, path="out"), suffix="parquet")


@pytest.fixture(params=["local", "bucket"])
def folder(request: pytest.FixtureRequest) -> Folder:
    return request.getfixturevalue(request.param)


def said(key: str) -> Outcome:
    return Rejection(request_id=key, error="e", message=f"of {key}")


def encoded(key: str) -> bytes:
    return encode(plain_outcome(said(key)))


def writer(folder: Folder, replica: str = "a", run: str = RUN, unit: str = UNIT) -> LogWriter:
    return LogWriter(folder, unit, run, replica)


def write(folder: Folder, begun: str = "", ended: str = "", died: str | None = None, **who: str) -> None:
    """Writes a replica's log: keys are letters."""
    log = writer(folder, **who)
    for key in begun:
        log.begin(key)
    for key in ended:
        log.end(key, encoded(key))
    if died is not None:
        log.died(died)
    log.close()


def history(folder: Folder, run: str = RUN) -> History:
    return read_history(folder, UNIT, run)


def test_a_unit_without_a_log_has_no_history(folder: Folder) -> None:
    assert history(folder) == History()


def test_nothing_is_written_before_there_is_something(folder: Folder) -> None:
    log = writer(folder)
    log.flush()
    log.close()
    assert folder.written() == {}


def test_what_ended_comes_back_with_its_key(folder: Folder) -> None:
    write(folder, begun="ab", ended="ab")
    got = history(folder)
    assert got.outcomes == {"a": said("a"), "b": said("b")}
    assert got.attempts == Counter()


def test_a_flush_hands_everything_to_a_local_disk_at_once(local: Folder) -> None:
    log = writer(local)
    log.begin("a")
    log.end("b", encoded("b"))
    log.flush()
    got = history(local)  # the writer is open still, as if it were killed now
    assert set(got.outcomes) == {"b"}
    assert got.attempts == {"a": 1}
    log.close()


def test_what_began_and_did_not_end_was_in_the_engine_that_died_and_said_so(folder: Folder) -> None:
    write(folder, begun="abc", ended="b", died="out of memory", run="earlier")
    got = history(folder)
    assert got.attempts == {"a": 1, "c": 1}
    assert got.causes == {"a": "out of memory", "c": "out of memory"}
    assert (+got.alone, got.killed) == (Counter(), set())


def test_a_silent_end_in_this_run_is_suspicious_for_the_run_lives(folder: Folder) -> None:
    write(folder, begun="ab", ended="b")
    got = history(folder)
    assert got.attempts == {"a": 1}
    assert got.causes == {"a": "its process ended without a word"}
    assert got.killed == set()


def test_a_silent_end_in_a_former_run_is_not_suspicious_for_its_driver_was_killed(folder: Folder) -> None:
    write(folder, begun="ab", ended="b", run="earlier")
    got = history(folder)
    assert got.outcomes == {"b": said("b")}
    assert (got.attempts, got.causes) == (Counter(), {})


def test_each_death_counts(folder: Folder) -> None:
    write(folder, begun="ab", died="one", replica="a")
    write(folder, begun="a", died="two", replica="b", run="earlier")
    write(folder, begun="ab", replica="c")
    assert history(folder).attempts == {"a": 3, "b": 2}


def test_a_request_that_another_replica_ended_is_answered(folder: Folder) -> None:
    write(folder, begun="ab", died="x", replica="a")
    write(folder, begun="ab", ended="a", replica="b")
    got = history(folder)
    assert got.outcomes == {"a": said("a")}
    assert got.attempts["b"] == 2


def alone(folder: Folder, keys: str, died: str | None, replica: str = "a", begun: str = "", ended: str = "") -> None:
    log = writer(folder, replica=replica)
    for key in begun:
        log.begin(key)
    for key in ended:
        log.end(key, encoded(key))
    log.flush(is_last=True)
    log.begin_alone(keys)
    log.flush(is_last=True)
    if died is not None:
        log.died(died)
    log.close()


def test_a_request_alone_in_an_engine_that_said_why_it_died_has_killed_it(local: Folder) -> None:
    alone(local, "a", died="segfault")
    got = history(local)
    assert (got.attempts, got.alone, got.killed) == ({"a": 1}, {"a": 1}, {"a"})


def test_a_request_alone_in_an_engine_that_died_silently_may_not_be_to_blame(folder: Folder) -> None:
    alone(folder, "a", died=None)
    got = history(folder)
    assert (got.attempts, got.alone, got.killed) == ({"a": 1}, {"a": 1}, set())


def test_a_group_that_ran_with_nothing_beside_it_was_not_alone(folder: Folder) -> None:
    alone(folder, "ab", died="x")
    got = history(folder)
    assert got.attempts == {"a": 1, "b": 1}
    assert (+got.alone, got.killed) == (Counter(), set())


def test_one_of_a_group_was_not_alone_though_the_others_of_it_had_ended(local: Folder) -> None:
    log = writer(local)
    log.begin_alone("ab")
    log.end("a", encoded("a"))
    log.died("x")
    log.close()
    got = history(local)
    assert (got.attempts, +got.alone, got.killed) == ({"b": 1}, Counter(), set())


def test_a_request_was_alone_though_others_had_ended_before_it(local: Folder) -> None:
    alone(local, "b", died="x", begun="a", ended="a")
    assert history(local).killed == {"b"}


def test_a_request_was_not_alone_where_another_had_not_ended(local: Folder) -> None:
    alone(local, "b", died="x", begun="a")
    got = history(local)
    assert got.attempts == {"a": 1, "b": 1}
    assert (+got.alone, got.killed) == (Counter(), set())


@pytest.mark.parametrize("cut", range(1, 60))
def test_a_last_line_cut_short_costs_itself_alone(local: Folder, cut: int) -> None:
    write(local, begun="ab", ended="ab")
    (place,) = log_files(local, [UNIT])
    data = place.read_bytes()
    ends = {key: data.index(b"\n", data.index(b'{"e":"' + key.encode())) for key in "ab"}
    Path(place.path).write_bytes(data[:-cut])
    got = history(local, "later")
    assert set(got.outcomes) == {key for key, end in ends.items() if end <= len(data) - cut}


@QUICK
@given(st.lists(st.sampled_from([b"", b"{", b"5", b"null", b"[1]", b'{"b": 5}', b'{"e": "x"}', b"\xff\xfe"])))
def test_lines_that_are_no_entries_are_passed_over(
    tmp_path_factory: pytest.TempPathFactory, garbage: list[bytes]
) -> None:
    local = Folder(root=locate(str(tmp_path_factory.mktemp("out")), "output.path"), suffix="parquet")
    write(local, ended="a")
    (place,) = log_files(local, [UNIT])
    place.write_bytes(b"\n".join([*garbage, place.read_bytes(), *garbage]))
    assert history(local).outcomes == {"a": said("a")}


def test_dropping_a_units_log_leaves_those_of_others(folder: Folder) -> None:
    other = UNIT[:-1] + "c"
    for unit in (UNIT, other, UNIT + "0"):
        for replica in "ab":
            write(folder, ended="x", replica=replica, unit=unit)
    drop_log(folder, UNIT)
    assert history(folder) == History()
    assert len(log_files(folder, [other, UNIT + "0"])) == 4
    drop_log(folder, UNIT)  # harmless again


def test_a_bucket_gets_the_first_part_at_once_and_then_whole_parts_at_intervals(
    bucket: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(log_module.time, "monotonic", lambda: now[0])
    log = writer(bucket)
    for second, key in enumerate("abcdefg"):
        now[0] = 1000.0 + second
        log.end(key, encoded(key))
        log.flush()
    assert [len(place.read_bytes().splitlines()) for place in log_files(bucket, [UNIT])] == [1, 2, 2, 2]
    log.end("h", encoded("h"))
    log.close()
    assert set(history(bucket).outcomes) == set("abcdefgh")


def test_parts_of_one_log_are_one_log(bucket: Folder) -> None:
    """What began in one part and ended in the next was in no engine that died."""
    log = writer(bucket)
    log.begin("a")
    log.begin("b")
    log.flush(is_last=True)
    log.end("a", encoded("a"))
    log.flush(is_last=True)
    log.close()
    assert history(bucket).attempts == {"b": 1}


def test_an_engine_that_says_why_it_died_says_so_of_all_parts_of_its_log(bucket: Folder) -> None:
    alone(bucket, "a", died="segfault")
    for run in (RUN, "later"):
        got = history(bucket, run)
        assert (got.attempts, got.alone, got.killed) == ({"a": 1}, {"a": 1}, {"a"})
        assert got.causes == {"a": "segfault"}


def test_a_second_log_of_the_same_replica_does_not_overwrite_the_first(folder: Folder) -> None:
    """Ray may run a unit again in an actor that lives."""
    write(folder, ended="a")
    write(folder, ended="b")
    assert set(history(folder).outcomes) == {"a", "b"}


def test_a_request_that_kills_at_once_is_known_to_have_begun(folder: Folder) -> None:
    """A process that ends without a word must leave behind what was in its engine, wherever the log is."""
    log = writer(folder)
    log.begin("a")
    log.flush()
    assert history(folder).attempts == {"a": 1}
    log.close()


KEYS = st.text("abcdef", max_size=6).map(lambda keys: "".join(dict.fromkeys(keys)))


@QUICK
@given(
    runs=st.lists(
        st.tuples(KEYS, KEYS, st.sampled_from([None, "cause"]), st.sampled_from([RUN, "earlier"])), max_size=4
    )
)
def test_attempts_are_the_deaths_that_a_request_did_not_survive(
    tmp_path_factory: pytest.TempPathFactory, runs: list[tuple[str, str, str | None, str]]
) -> None:
    local = Folder(root=locate(str(tmp_path_factory.mktemp("out")), "output.path"), suffix="parquet")
    wanted: Counter[str] = Counter()
    for number, (begun, ended, cause, run) in enumerate(runs):
        write(local, begun=begun, ended=ended, died=cause, run=run, replica=str(number))
        if cause is not None or run == RUN:
            wanted.update(set(begun) - set(ended))
    got = history(local)
    answered = {key for _, ended, _, _ in runs for key in ended}
    assert set(got.outcomes) == answered
    assert {k: n for k, n in got.attempts.items() if k not in answered} == {
        k: n for k, n in wanted.items() if k not in answered
    }
