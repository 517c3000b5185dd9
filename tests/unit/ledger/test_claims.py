"""Equal requests run once: who asks first runs one, the others get its outcome."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from pipelines.ledger import claims as claims_module
from pipelines.ledger.claims import FORGET_S, Answer, Claims


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(claims_module.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def claims(tmp_path: Path, clock: Clock) -> Iterator[Claims]:
    made = Claims(str(tmp_path))
    yield made
    made.close()


def key(number: int) -> bytes:
    return number.to_bytes(16, "big")


A, B, C = key(1), key(2), key(3)


def test_who_asks_first_runs_a_request_and_others_wait(claims: Claims) -> None:
    assert claims.claim("one", [A, B]) == Answer(mine=[A, B])
    assert claims.claim("two", [B, C]) == Answer(mine=[C], others=[B])


def test_a_settled_request_is_known_to_everyone(claims: Claims) -> None:
    claims.claim("one", [A])
    claims.settle("one", [(A, b"outcome")])
    for holder in ("one", "two"):
        assert claims.claim(holder, [A, B]).known == {A: b"outcome"}


def test_an_outcome_may_be_longer_than_a_page_and_empty(claims: Claims) -> None:
    claims.settle("one", [(A, b"x" * 1_000_000), (B, b"")])
    assert claims.claim("two", [A, B]).known == {A: b"x" * 1_000_000, B: b""}


def test_the_first_outcome_stays_whoever_comes_later(claims: Claims) -> None:
    claims.settle("one", [(A, b"first"), (A, b"again")])
    claims.settle("two", [(A, b"second"), (B, b"other")])
    assert claims.claim("three", [A, B]).known == {A: b"first", B: b"other"}


def test_an_outcome_that_nobody_claimed_is_taken_all_the_same(claims: Claims) -> None:
    claims.claim("one", [A])
    claims.settle("two", [(A, b"x")])
    assert claims.claim("one", [A]) == Answer(known={A: b"x"})


def test_a_holder_that_ends_frees_its_claims_and_no_others(claims: Claims) -> None:
    claims.claim("one", [A])
    claims.claim("two", [B])
    claims.release("one")
    claims.release("nobody")
    assert claims.claim("three", [A, B]) == Answer(mine=[A], others=[B])


def test_a_holder_not_heard_of_for_long_loses_its_claims(claims: Claims, clock: Clock) -> None:
    claims.claim("one", [A])
    clock.now += FORGET_S
    assert claims.claim("two", [A]) == Answer(others=[A])
    clock.now += 0.1
    assert claims.claim("two", [A]) == Answer(mine=[A])
    assert claims.claim("one", [A]) == Answer(others=[A])


@pytest.mark.parametrize("sign", ["alive", "settle", "claim"])
def test_a_holder_that_is_heard_of_keeps_its_claims(claims: Claims, clock: Clock, sign: str) -> None:
    claims.claim("one", [A])
    clock.now += FORGET_S
    if sign == "alive":
        claims.alive("one")
    elif sign == "settle":
        claims.settle("one", [(B, b"x")])
    else:
        claims.claim("one", [C])
    clock.now += FORGET_S
    assert claims.claim("two", [A]) == Answer(others=[A])


def test_a_late_outcome_of_a_forgotten_holder_is_welcome(claims: Claims, clock: Clock) -> None:
    claims.claim("one", [A])
    clock.now += FORGET_S + 1
    claims.claim("two", [A])
    claims.settle("one", [(A, b"late")])
    assert claims.claim("three", [A]).known == {A: b"late"}


def test_a_holder_that_asks_again_gets_what_it_holds(claims: Claims) -> None:
    claims.claim("one", [A])
    assert claims.claim("one", [A]) == Answer(mine=[A])


def test_units_of_one_replica_are_holders_of_their_own(claims: Claims) -> None:
    assert claims.claim("one/u1", [A]) == Answer(mine=[A])
    assert claims.claim("one/u2", [A, B]) == Answer(mine=[B], others=[A])


def test_units_of_one_replica_live_and_die_together(claims: Claims, clock: Clock) -> None:
    claims.claim("one/u1", [A])
    claims.claim("two/u3", [C])
    clock.now += FORGET_S
    claims.alive("one")
    clock.now += 1
    assert claims.claim("three/u4", [A, C]) == Answer(mine=[C], others=[A])
    claims.claim("one/u2", [B])
    claims.release("one")
    assert claims.claim("three/u4", [A, B]) == Answer(mine=[A, B])


def test_nothing_asked_is_nothing_answered(claims: Claims) -> None:
    assert claims.claim("one", []) == Answer()
    claims.settle("one", [])


def test_a_key_asked_for_twice_has_one_owner(claims: Claims) -> None:
    assert set(claims.claim("one", [A, A]).mine) == {A}
    assert claims.claim("two", [A, A]).mine == []


@pytest.mark.parametrize("count", [0, 1, 9_999, 10_000, 10_001, 20_000])
def test_outcomes_of_a_former_run_are_loaded(claims: Claims, count: int) -> None:
    assert claims.load((key(n), str(n).encode()) for n in range(count)) == count
    asked = [key(n) for n in range(0, count + 10, 997)]
    got = claims.claim("one", [*asked, key(count)])
    assert got.known == {key(n): str(n).encode() for n in range(0, count + 10, 997) if n < count}
    assert set(got.mine) == {key(count), *(k for k in asked if k not in got.known)}


def test_many_holders_at_once_run_each_request_once(claims: Claims) -> None:
    """An actor runs one call at a time; the claims need no lock, for calls take turns here too."""
    turn = threading.Lock()
    ran: list[bytes] = []

    def work(holder: str) -> None:
        todo = [key(n) for n in range(200)]
        while todo:
            with turn:
                got = claims.claim(holder, todo[:7])
                ran.extend(got.mine)
                claims.settle(holder, [(k, b"x") for k in got.mine])
            todo = [k for k in todo if k in got.others] + todo[7:]

    threads = [threading.Thread(target=work, args=(str(n),)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(ran) == [key(n) for n in range(200)]


def test_nothing_is_left_of_the_database_however_its_process_ends(tmp_path: Path) -> None:
    claims = Claims(str(tmp_path))
    assert list(tmp_path.iterdir()) == []
    claims.settle("one", [(A, b"x" * 100_000)])
    assert claims.claim("two", [A]).known == {A: b"x" * 100_000}
    claims.close()


HOLDERS = st.sampled_from(["one", "two", "three"])
KEYS = st.lists(st.integers(0, 5).map(key), max_size=4, unique=True)


class ClaimsMachine(RuleBasedStateMachine):
    """Against a model of two dicts; each holder is heard of whenever it acts."""

    def __init__(self) -> None:
        super().__init__()
        self.claims = Claims()
        self.known: dict[bytes, bytes] = {}
        self.owner: dict[bytes, str] = {}

    @rule(holder=HOLDERS, keys=KEYS)
    def claim(self, holder: str, keys: list[bytes]) -> None:
        got = self.claims.claim(holder, keys)
        assert got.known == {k: self.known[k] for k in keys if k in self.known}
        free = [k for k in keys if k not in self.known]
        assert got.mine == [k for k in free if self.owner.get(k, holder) == holder]
        assert got.others == [k for k in free if self.owner.get(k, holder) != holder]
        self.owner.update(dict.fromkeys(got.mine, holder))

    @rule(holder=HOLDERS, keys=KEYS, outcome=st.binary(max_size=3))
    def settle(self, holder: str, keys: list[bytes], outcome: bytes) -> None:
        self.claims.settle(holder, [(k, outcome) for k in keys])
        for k in keys:
            self.known.setdefault(k, outcome)
            self.owner.pop(k, None)

    @rule(holder=HOLDERS)
    def release(self, holder: str) -> None:
        self.claims.release(holder)
        self.owner = {k: owner for k, owner in self.owner.items() if owner != holder}

    @invariant()
    def a_stranger_gets_what_nobody_holds(self) -> None:
        keys = [key(n) for n in range(6)]
        got = self.claims.claim("stranger", keys)
        assert set(got.mine) == {k for k in keys if k not in self.known and k not in self.owner}
        self.claims.release("stranger")

    def teardown(self) -> None:
        self.claims.close()


ClaimsMachine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=25, deadline=None, database=None, derandomize=True
)
TestClaimsAgainstAModel = ClaimsMachine.TestCase
