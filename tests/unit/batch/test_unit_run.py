"""One unit on one replica: what is known is not asked, what kills engines is found out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_engine import RUN, UNIT, Engine, PlainDesk, entry, requests, run, said

from pipelines.batch.unit_run import Found, suspect_groups
from pipelines.ledger.claims import Claims
from pipelines.ledger.folder import Folder
from pipelines.ledger.log import LogWriter, log_files, read_history
from pipelines.ledger.outcome import encode, plain_outcome
from pipelines.storage import locate
from serve.engine.errors import EngineDead
from serve.engine.protocol import Completion, Rejection

QUICK = settings(deadline=None, max_examples=100, database=None, derandomize=True)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(root=locate(str(tmp_path), "output.path"), suffix="parquet")


@pytest.fixture
def claims(tmp_path: Path) -> Iterator[Claims]:
    made = Claims(str(tmp_path))
    yield made
    made.close()


def logged(folder: Folder, *numbers: int, replica: str = "before", run: str = "earlier") -> None:
    log = LogWriter(folder, UNIT, run, replica)
    for number in numbers:
        log.end(entry(number), encode(plain_outcome(said(number))))
    log.close()


def texts(found: Found) -> dict[str, str]:
    return {key: out.text if isinstance(out, Completion) else out.error for key, out in found.outcomes.items()}


def test_each_request_runs_once_and_is_logged(folder: Folder) -> None:
    engine = Engine()
    found = run(folder, requests(1, 2, 3), engine)
    assert engine.ran == [1, 2, 3]
    assert texts(found) == {entry(n): f"of {n}" for n in (1, 2, 3)}
    assert found.ran() == set(found.outcomes)
    assert set(read_history(folder, UNIT, RUN).outcomes) == set(found.outcomes)
    assert not found.attempts


def test_what_a_former_run_has_logged_is_not_asked_again(folder: Folder) -> None:
    logged(folder, 1, 3)
    engine = Engine()
    found = run(folder, requests(1, 2, 3), engine)
    assert engine.ran == [2]
    assert found.replayed == {entry(1), entry(3)}
    assert texts(found) == {entry(n): f"of {n}" for n in (1, 2, 3)}


def test_what_a_former_part_file_holds_is_not_asked_again(folder: Folder) -> None:
    engine = Engine()
    found = run(folder, requests(1, 2), engine, former={entry(2): said(2), entry(9): said(9)})
    assert engine.ran == [1]
    assert set(found.outcomes) == {entry(1), entry(2)}
    assert (found.replayed, found.ran()) == ({entry(2)}, {entry(1)})


def test_a_rejected_request_is_an_outcome_like_others(folder: Folder) -> None:
    log = LogWriter(folder, UNIT, "earlier", "x")
    log.end(entry(1), encode(plain_outcome(Rejection(request_id="", error="too_long", message="m"))))
    log.close()
    engine = Engine()
    assert texts(run(folder, requests(1), engine)) == {entry(1): "too_long"}
    assert engine.ran == []


def test_a_stopped_job_gets_what_there_is_and_the_rest_comes_with_the_next(folder: Folder) -> None:
    found = run(folder, requests(*range(10)), Engine(stop_after=3))
    assert set(found.outcomes) == {entry(n) for n in range(3)}
    engine = Engine()
    again = run(folder, requests(*range(10)), engine, replica="b", job="run2")
    assert engine.ran == list(range(3, 10))
    assert not again.attempts  # ended by the user, not by an engine


def test_after_a_death_the_others_go_first_and_the_suspects_by_themselves(folder: Folder) -> None:
    asked = requests(*range(8))
    with pytest.raises(EngineDead):
        run(folder, asked, Engine(poison=(2,), slots=4))
    engine = Engine(slots=4)
    found = run(folder, asked, engine, replica="b")
    assert engine.ran[:4] == [4, 5, 6, 7]
    assert [n for group in engine.groups for n in group] == [0, 1, 2, 3]
    assert all(len(group) < 4 for group in engine.groups)
    assert found.attempts == {entry(n): 1 for n in range(4)}


def until_done(folder: Folder, count: int, poison: tuple[int, ...], slots: int, most: int, says: bool) -> Any:
    """Runs a unit in engine after engine; returns what was found, what ran, and the deaths."""
    ran: Counter[int] = Counter()
    for deaths in range(100):
        engine = Engine(poison, slots)
        try:
            found = run(folder, requests(*range(count)), engine, f"r{deaths}", max_attempts=most, says=says)
            return found, ran + Counter(engine.ran), deaths
        except EngineDead:
            ran.update(engine.ran)
    pytest.fail("engines die on and on")


@QUICK
@given(
    count=st.integers(1, 12),
    poison=st.lists(st.integers(0, 11), max_size=2, unique=True).map(tuple),
    slots=st.integers(1, 5),
    most=st.integers(2, 5),
    says=st.booleans(),
)
def test_what_kills_engines_is_given_up_and_all_else_answered_once(
    tmp_path_factory: pytest.TempPathFactory, count: int, poison: tuple[int, ...], slots: int, most: int, says: bool
) -> None:
    folder = Folder(root=locate(str(tmp_path_factory.mktemp("out")), "output.path"), suffix="parquet")
    found, ran, deaths = until_done(folder, count, poison, slots, most, says)
    killers = [n for n in poison if n < count]
    assert texts(found) == {entry(n): "engine_killer" if n in killers else f"of {n}" for n in range(count)}
    assert ran == Counter(n for n in range(count) if n not in killers)
    assert found.given_up == {entry(n) for n in killers}
    assert deaths <= len(killers) * (most if says else most + 2)


def test_a_killer_is_told_to_equal_requests_and_named_with_its_cause(folder: Folder, claims: Claims) -> None:
    for replica in "abcd":
        with pytest.raises(EngineDead):
            run(folder, requests(1), Engine(poison=(1,)), replica)
    found = run(folder, requests(1), Engine(), "e", PlainDesk(claims, "e"))
    (outcome,) = found.outcomes.values()
    assert isinstance(outcome, Rejection)
    assert (outcome.error, outcome.message.split(": ")[-1]) == ("engine_killer", "segfault")
    assert found.attempts == {entry(1): 4}
    engine = Engine()
    other = run(folder, requests(1), engine, "f", PlainDesk(claims, "f"), unit="f" * 12)
    assert (texts(other), engine.ran, other.shared) == ({entry(1): "engine_killer"}, [], {entry(1)})


@given(
    attempts=st.dictionaries(st.text("abcdefgh", min_size=1, max_size=2), st.integers(1, 6), max_size=20),
    most=st.integers(2, 6),
)
@QUICK
def test_suspects_are_parted_in_groups_that_get_smaller(attempts: dict[str, int], most: int) -> None:
    suspects = list(attempts)
    groups = suspect_groups(suspects, Counter(attempts), most)
    assert sorted(key for group in groups for key in group) == sorted(suspects)
    for group in groups:
        (times,) = {attempts[key] for key in group}
        alike = sum(n == times for n in attempts.values())
        assert 1 <= len(group) < max(alike, 2)
        if times >= most - 1:
            assert len(group) == 1
    assert [attempts[group[0]] for group in groups] == sorted(attempts[group[0]] for group in groups)


def test_the_log_is_read_once_it_is_whole_and_closed(folder: Folder) -> None:
    run(folder, requests(1), Engine())
    (place,) = log_files(folder, [UNIT])
    assert place.path.endswith(f"{UNIT}.{RUN}.a.jsonl")
    assert place.read_bytes().endswith(b"\n")


@pytest.mark.parametrize(
    "together, alone, says, is_given_up",
    [(3, 1, True, True), (4, 0, True, False), (1, 2, True, False), (3, 1, False, False), (1, 3, False, True)],
)
def test_a_request_is_given_up_only_when_it_was_alone_and_a_silent_end_only_when_there_were_three(
    folder: Folder, together: int, alone: int, says: bool, is_given_up: bool
) -> None:
    """A process that ends without a word may have been ended by somebody else."""
    for number in range(together + alone):
        log = LogWriter(folder, UNIT, RUN, f"dead{number}")
        log.begin_alone([entry(1)] if number < alone else [entry(1), entry(2)])
        log.flush(is_last=True)
        if says:
            log.died("x")
        log.close()
    engine = Engine()
    found = run(folder, requests(1), engine)
    assert (entry(1) in found.given_up, engine.ran) == (is_given_up, [] if is_given_up else [1])
