from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from serve.keys import Limits
from serve.middleware.limiter import Account, Ticket, Wait, Window

pauses = st.integers(0, 320).map(lambda eighths: eighths / 8)  # sums of them are exact: else 3.99... + 60 is 64
steps = st.lists(
    st.tuples(pauses, st.integers(0, 60), st.one_of(st.none(), st.integers(0, 60))),
    max_size=60,
)


def fullest(events: list[tuple[float, int]]) -> int:
    """The most that any 60 s, ends not both counted, hold."""
    return max((sum(n for at, n in events if start <= at < start + 60) for start, _ in events), default=0)


@given(steps=steps, requests=st.integers(1, 8), tokens=st.integers(1, 100))
def test_no_minute_holds_more_than_the_limits(steps: list, requests: int, tokens: int):
    account, now = Account(), 0.0
    limits = Limits(requests_per_min=requests, tokens_per_min=tokens)
    entered: list[tuple[float, int]] = []
    reserved: list[tuple[float, int]] = []
    for pause_s, amount, _ in steps:
        now += pause_s
        ticket = account.enter(limits, now)
        if isinstance(ticket, Wait):
            continue
        if ticket.reserve(amount, now) is None:
            entered.append((now, 1))
            reserved.append((now, amount))
        ticket.close(None, now)
    assert fullest(entered) <= requests
    assert fullest(reserved) <= tokens


@given(steps=steps, tokens=st.integers(1, 100))
def test_what_was_used_counts_and_no_minute_begins_beyond_the_limit(steps: list, tokens: int):
    account, now = Account(), 0.0
    used: list[tuple[float, int]] = []
    for pause_s, amount, actual in steps:
        now += pause_s
        ticket = account.enter(Limits(tokens_per_min=tokens), now)
        assert isinstance(ticket, Ticket)
        accepted = ticket.reserve(amount, now) is None
        if accepted:
            assert sum(n for at, n in used if at > now - 60) + amount <= tokens
            used.append((now, amount if actual is None else actual))
        ticket.close(actual, now)
        assert account.tokens.spent(now) >= sum(n for at, n in used if at > now - 60)
    assert account.tokens.total == sum(account.tokens.seconds.values())
    assert all(spent >= 0 for spent in account.tokens.seconds.values())
    assert account.num_open == 0


@given(steps=steps)
def test_a_refused_request_costs_nothing(steps: list):
    account, now = Account(), 0.0
    limits = Limits(requests_per_min=3, tokens_per_min=50, max_concurrent=2)
    for pause_s, amount, actual in steps:
        now += pause_s
        before = (account.requests.spent(now), account.tokens.spent(now), account.num_open)
        ticket = account.enter(limits, now)
        if isinstance(ticket, Ticket):
            is_refused = ticket.reserve(amount, now) is not None
            ticket.close(actual, now)
            if not is_refused:
                continue
        assert (account.requests.spent(now), account.tokens.spent(now), account.num_open) == before


@given(steps=steps, amount=st.integers(1, 60))
def test_after_the_wait_it_fits_and_a_second_before_it_did_not(steps: list, amount: int):
    window, now, limit = Window(), 0.0, 60
    for pause_s, spent, _ in steps:
        now += pause_s
        if window.wait_s(spent, limit, now) == 0:
            window.spend(spent, now)
    wait_s = window.wait_s(amount, limit, now)
    assert wait_s is not None
    assert wait_s <= 61
    if wait_s:
        assert window.wait_s(amount, limit, now + wait_s - 1) != 0
    assert window.wait_s(amount, limit, now + wait_s) == 0


def test_what_exceeds_the_limit_alone_never_fits():
    ticket = Account().enter(Limits(tokens_per_min=10), 0)
    assert isinstance(ticket, Ticket)
    assert ticket.reserve(11, 0) == Wait(
        reason="rate limit of 10 tokens/min reached; this request may use 11", seconds=None
    )


def test_an_hour_of_load_is_sixty_one_numbers():
    window = Window()
    for tick in range(36_000):
        window.spend(1, tick / 10)
    assert len(window.seconds) <= 61
    assert window.spent(3600) == window.total == sum(window.seconds.values())


def test_a_place_is_free_when_a_request_ends():
    account, limits = Account(), Limits(max_concurrent=1)
    first = account.enter(limits, 0)
    assert isinstance(first, Ticket)
    assert account.enter(limits, 0) == Wait(reason="limit of 1 requests at once reached", seconds=1)
    first.close(None, 0)
    assert isinstance(account.enter(limits, 0), Ticket)
