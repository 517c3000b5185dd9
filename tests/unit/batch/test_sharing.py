"""Equal requests of several units and replicas: run once, waited for while it helps, and no innocent is blamed."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_engine import RUN, UNIT, Engine, PlainDesk, entry, requests, run, said

from pipelines.batch import unit_run as unit_run_module
from pipelines.batch.unit_run import UnitRun
from pipelines.ledger import claims as claims_module
from pipelines.ledger.claims import Answer, Claims
from pipelines.ledger.folder import Folder
from pipelines.ledger.log import read_history
from pipelines.ledger.outcome import encode, plain_outcome
from pipelines.storage import locate
from serve.engine.errors import EngineDead
from serve.engine.protocol import Completion

OTHER = "f" * 12


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unit_run_module, "ASK_AGAIN_S", 0.002)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(root=locate(str(tmp_path / "out"), "output.path"), suffix="parquet")


@pytest.fixture
def claims(tmp_path: Path) -> Iterator[Claims]:
    made = Claims(str(tmp_path))
    yield made
    made.close()


def key(number: int) -> bytes:
    return bytes.fromhex(entry(number))


def settled(claims: Claims, *numbers: int) -> None:
    claims.settle("former", [(key(n), encode(plain_outcome(said(n)))) for n in numbers])


def test_a_request_that_another_has_answered_is_not_run(folder: Folder, claims: Claims) -> None:
    settled(claims, 2)
    engine = Engine()
    found = run(folder, requests(1, 2), engine, desk=PlainDesk(claims, "a"))
    assert (engine.ran, found.shared, found.ran()) == ([1], {entry(2)}, {entry(1)})
    outcome = found.outcomes[entry(2)]
    assert isinstance(outcome, Completion)
    assert outcome.text == "of 2"


def test_drawn_answers_are_not_shared(folder: Folder, claims: Claims) -> None:
    settled(claims, 1)
    drawn = {f"{entry(1)}:{position}": requests(position)[entry(position)] for position in (5, 6)}
    engine = Engine()
    found = run(folder, drawn, engine, desk=PlainDesk(claims, "a"))
    assert engine.ran == [5, 6]
    assert found.ran() == set(drawn)


def test_without_a_desk_every_request_runs(folder: Folder) -> None:
    for unit in (UNIT, OTHER):
        engine = Engine()
        run(folder, requests(1), engine, unit=unit)
        assert engine.ran == [1]


def test_what_ran_here_is_known_to_others_when_the_unit_ends(folder: Folder, claims: Claims) -> None:
    run(folder, requests(1, 2), Engine(), desk=PlainDesk(claims, "a"))
    engine = Engine()
    found = run(folder, requests(1, 2, 3), engine, "b", PlainDesk(claims, "b"), unit=OTHER)
    assert (engine.ran, found.shared) == ([3], {entry(1), entry(2)})


def test_a_long_unit_tells_what_it_knows_before_it_ends(folder: Folder, claims: Claims) -> None:
    count = unit_run_module.SETTLE_ROWS + 1
    keys = [key(n) for n in range(count)]
    known: list[int] = []

    class Watched(Engine):
        def ask(self, asked: Any, is_alone: bool, on_outcome: Any, on_tick: Any) -> None:
            def look(outcome: Any) -> None:
                if len(self.ran) == count:
                    known.append(len(claims.claim("other", keys).known))
                on_outcome(outcome)

            super().ask(asked, is_alone, look, on_tick)

    run(folder, requests(*range(count)), Watched(), desk=PlainDesk(claims, "a"))
    assert known == [count - 1]


def test_a_request_of_another_that_lives_is_waited_for(folder: Folder, claims: Claims) -> None:
    claims.claim("busy", [key(1)])
    desk, engine = PlainDesk(claims, "a"), Engine()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(run, folder, requests(1, 2), engine, "a", desk)
        with pytest.raises(TimeoutError):
            waiting.result(0.05)
        assert engine.ran == [2]
        PlainDesk(claims, "busy").settle([(key(1), encode(plain_outcome(said(1))))])
        assert waiting.result(5).shared == {entry(1)}
    assert engine.ran == [2]


def test_a_request_of_another_that_died_is_run_here(
    folder: Folder, claims: Claims, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims_module, "FORGET_S", 0.05)
    claims.claim("dead", [key(1)])
    engine = Engine()
    run(folder, requests(1, 2), engine, desk=PlainDesk(claims, "a"))
    assert engine.ran == [2, 1]


def test_a_stopped_job_waits_for_nobody(folder: Folder, claims: Claims) -> None:
    claims.claim("busy", [key(1)])
    engine = Engine()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(run, folder, requests(1, 2), engine, "a", PlainDesk(claims, "a"))
        with pytest.raises(TimeoutError):
            waiting.result(0.05)
        engine.is_stopping = True
        assert set(waiting.result(5).outcomes) == {entry(2)}


def test_who_waits_has_told_first_what_it_knows(folder: Folder) -> None:
    """Else two replicas that wait for each other wait for ever."""
    told: list[bytes] = []

    class Slow:
        asked = 0

        def claim(self, keys: list[bytes]) -> Answer:
            self.asked += 1
            if self.asked == 1:
                return Answer(mine=[key(1)], others=[key(2)])
            assert told == [key(1)]
            return Answer(known={key(2): encode(plain_outcome(said(2)))})

        def settle(self, outcomes: list[tuple[bytes, bytes]]) -> None:
            told.extend(one for one, _ in outcomes)

    run(folder, requests(1, 2), Engine(), desk=Slow())  # type: ignore[arg-type]


def test_what_a_dead_replica_left_is_known_to_others(folder: Folder, claims: Claims) -> None:
    """It had logged the outcome and not yet told it; another unit has the same request."""
    dead = UnitRun(folder, UNIT, RUN, "dead", PlainDesk(claims, "dead"), 4)
    dead.log.end(entry(1), encode(plain_outcome(said(1))))
    dead.log.close()
    run(folder, requests(1), Engine(), "b", PlainDesk(claims, "b"))
    engine = Engine()
    run(folder, requests(1), engine, "c", PlainDesk(claims, "c"), unit=OTHER)
    assert engine.ran == []


def test_two_units_of_one_replica_run_an_equal_request_once(folder: Folder, claims: Claims) -> None:
    engine = Engine()
    is_asked, may_go = threading.Event(), threading.Event()
    ask = engine.ask

    def held(*arguments: object) -> None:
        is_asked.set()
        assert may_go.wait(5)
        ask(*arguments)  # type: ignore[arg-type]

    engine.ask = held  # type: ignore[method-assign, assignment]
    desks = [PlainDesk(claims, f"a/{unit}") for unit in (UNIT, OTHER)]
    has_claimed, claim = threading.Event(), desks[1].claim

    def told(keys: list[bytes]) -> Any:
        answer = claim(keys)
        has_claimed.set()
        return answer

    desks[1].claim = told  # type: ignore[method-assign]
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(run, folder, requests(1), engine, "a", desks[0])
        assert is_asked.wait(5)
        second = pool.submit(run, folder, requests(1), engine, "a", desks[1], unit=OTHER)
        assert has_claimed.wait(5)
        with pytest.raises(TimeoutError):
            second.result(0.1)  # it waits for the first
        may_go.set()
        assert set(first.result(5).outcomes) == set(second.result(5).outcomes) == {entry(1)}
    assert engine.ran == [1]


def test_who_waits_at_the_door_of_an_engine_that_dies_is_not_blamed(folder: Folder) -> None:
    """Of two units with suspects one is alone in the engine, the other waits until it may be."""
    for unit, number in ((UNIT, 1), (OTHER, 2)):
        with pytest.raises(EngineDead):  # both were in an engine that died
            run(folder, requests(number), Engine(poison=(1, 2)), "first", unit=unit)
    engine = Engine(poison=(1,))
    waits = threading.Event()
    begin_alone = engine.door

    class Door:
        def __enter__(self) -> None:
            if begin_alone.acquire(blocking=False):
                return
            waits.set()
            begin_alone.acquire()

        def __exit__(self, *exc: object) -> None:
            begin_alone.release()

    engine.door = Door()  # type: ignore[assignment]
    is_in = threading.Event()

    def wait_for_the_other() -> None:
        is_in.set()
        assert waits.wait(5)

    engine.on_alone = wait_for_the_other
    innocent = UnitRun(folder, OTHER, RUN, "second", None, 4)
    with ThreadPoolExecutor(2) as pool:
        guilty = pool.submit(run, folder, requests(1), engine, "second")
        assert is_in.wait(5)
        other = pool.submit(innocent.answer, requests(2), {}, engine)
        with pytest.raises(EngineDead):
            guilty.result(5)
        with pytest.raises(EngineDead):
            other.result(5)
        innocent.log.died("segfault")  # as `Infer.die` does: the process ends, and with it all units
    history = read_history(folder, OTHER, RUN)
    assert history.attempts[entry(2)] <= 1
    assert (+history.alone, history.killed) == (Counter(), set())


@settings(deadline=None, max_examples=25, database=None, derandomize=True)
@given(
    units=st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=4, unique=True), min_size=2, max_size=4),
    slots=st.integers(1, 3),
)
def test_replicas_that_share_their_requests_all_end_and_run_each_once(
    tmp_path_factory: pytest.TempPathFactory, units: list[list[int]], slots: int
) -> None:
    path = tmp_path_factory.mktemp("out")
    folder = Folder(root=locate(str(path), "output.path"), suffix="parquet")
    Path(folder.log.path).mkdir(parents=True)  # how a folder is listed that just comes to be: see test_storage.py
    claims, turn = Claims(str(path)), threading.Lock()
    engines = [Engine(slots=slots) for _ in units]

    def work(index: int) -> set[str]:
        desk = PlainDesk(claims, str(index))
        desk._turn = turn  # an actor takes one call at a time
        unit = f"{index:012x}"
        return set(run(folder, requests(*units[index]), engines[index], str(index), desk, unit=unit).outcomes)

    with ThreadPoolExecutor(len(units)) as pool:
        done = list(pool.map(work, range(len(units)), timeout=20))
    claims.close()
    assert done == [{entry(n) for n in unit} for unit in units]
    ran = Counter(n for engine in engines for n in engine.ran)
    assert ran == Counter({n for unit in units for n in unit})
