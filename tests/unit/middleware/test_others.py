from __future__ import annotations

import asyncio
from collections.abc import Mapping

import msgspec
import pytest

from serve.keys import Limits
from serve.middleware import others
from serve.middleware.limiter import Account, Ticket, Wait
from serve.middleware.others import Others, Post, Use, merged

LIMITS = Limits(requests_per_min=4, tokens_per_min=100, max_concurrent=3)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Board:
    def __init__(self) -> None:
        self.posts: dict[str, bytes] = {}
        self.error: Exception | None = None

    def swap(self, name: str, post: bytes) -> Mapping[str, bytes]:
        if self.error is not None:
            raise self.error
        self.posts[name] = post
        return dict(self.posts)

    def drop(self, name: str) -> None:
        del self.posts[name]


class Replica:
    def __init__(self, name: str, board: Board, clock: Clock) -> None:
        self.accounts: dict[str, Account] = {}
        self.others = Others(name, board, clock)
        self.clock = clock

    async def look(self) -> None:
        await self.others.look(self.accounts)

    def enter(self, key: str = "key", tokens: int = 10) -> Ticket | Wait:
        entered = self.accounts.setdefault(key, Account()).enter(LIMITS, self.clock())
        return entered.reserve(tokens, self.clock()) or entered if isinstance(entered, Ticket) else entered


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def board() -> Board:
    return Board()


@pytest.fixture
def pair(board: Board, clock: Clock) -> tuple[Replica, Replica]:
    return Replica("one", board, clock), Replica("two", board, clock)


def ticket(entered: Ticket | Wait) -> Ticket:
    assert isinstance(entered, Ticket), entered
    return entered


async def both(pair: tuple[Replica, Replica]) -> None:
    for replica in (*pair, *pair):
        await replica.look()


async def test_requests_of_all_replicas_count(pair: tuple[Replica, Replica], clock: Clock):
    for replica in (*pair, *pair):
        ticket(replica.enter()).close(10, clock())
    await both(pair)
    clock.now += 20
    await both(pair)
    for replica in pair:
        assert replica.enter() == Wait(reason="rate limit of 4 requests/min reached", seconds=41)
        assert ("x-ratelimit-remaining-requests", "0") in replica.accounts["key"].headers(LIMITS, clock())
        assert ("x-ratelimit-remaining-tokens", "60") in replica.accounts["key"].headers(LIMITS, clock())
    clock.now += 41
    await both(pair)
    assert isinstance(pair[0].enter(), Ticket)


async def test_tokens_of_all_replicas_count_and_what_was_not_used_is_free_everywhere(pair: tuple[Replica, Replica]):
    one, two = pair
    asked = ticket(one.enter(tokens=70))
    await both(pair)
    refused = two.enter(tokens=40)
    assert isinstance(refused, Wait)
    assert refused.reason == "rate limit of 100 tokens/min reached"
    assert refused.seconds == 61  # until the other replica's tokens count no more
    asked.close(10, one.clock())
    await both(pair)
    assert isinstance(two.enter(tokens=40), Ticket)


async def test_requests_at_once_are_those_of_all_replicas(pair: tuple[Replica, Replica]):
    one, two = pair
    held = [ticket(one.enter()), ticket(two.enter()), ticket(two.enter())]
    await both(pair)
    assert one.enter() == Wait(reason="limit of 3 requests at once reached", seconds=1)
    held[1].close(0, two.clock())
    await both(pair)
    assert isinstance(one.enter(), Ticket)


async def test_keys_are_apart(pair: tuple[Replica, Replica]):
    one, two = pair
    for _ in range(3):
        ticket(one.enter())
    await both(pair)
    assert isinstance(two.enter(), Wait)
    assert isinstance(two.enter("other"), Ticket)


async def test_a_replica_that_dies_holds_no_place_but_its_minute_counts(
    pair: tuple[Replica, Replica], board: Board, clock: Clock
):
    one, two = pair
    for _ in range(3):
        ticket(one.enter())
    await one.look()
    await two.look()
    clock.now += 6  # one is dead
    await two.look()
    assert two.accounts["key"].open_elsewhere == 0
    ticket(two.enter())
    assert two.enter() == Wait(reason="rate limit of 4 requests/min reached", seconds=55)
    clock.now += 56
    await two.look()
    assert two.accounts["key"].requests.elsewhere == 0
    assert list(board.posts) == ["two"]


async def test_without_a_board_limits_hold_in_each_replica_and_nobody_waits(
    pair: tuple[Replica, Replica], board: Board, clock: Clock, caplog: pytest.LogCaptureFixture
):
    one, two = pair
    for _ in range(3):
        ticket(one.enter())
    await both(pair)
    board.error = RuntimeError("no store")
    await two.look()
    assert isinstance(two.enter(), Wait)  # what was told last holds for its minute
    clock.now += 62
    await two.look()
    assert "limits hold here alone" in caplog.text
    assert isinstance(two.enter(), Ticket)
    for _ in range(3):
        two.enter()
    assert isinstance(two.enter(), Wait)


async def test_it_looks_by_itself(pair: tuple[Replica, Replica], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(others, "PERIOD_S", 0.01)
    for replica in pair:
        replica.others.follow(replica.accounts)
        replica.others.follow(replica.accounts)
    ticket(pair[0].enter())
    async with asyncio.timeout(5):
        while "key" not in pair[1].accounts or not pair[1].accounts["key"].requests.elsewhere:
            await asyncio.sleep(0.01)


def test_uses_are_added_and_their_soonest_end_is_kept():
    fresh, old = Use(1, 10, 1, 30, 61), Use(2, 20, 2, 61, 20)
    found = merged([(Post(1, {"key": fresh}), 0.0), (Post(9, {"key": old}), 5.5)])
    assert found == {"key": Use(3, 30, 1, 30, 15)}
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(Post(1, {"key": fresh})), type=Post).uses == {"key": fresh}
