"""What a router counts of requests that it sent, that others sent, and that never came."""

from __future__ import annotations

import json
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conf.schema.router import RouterSpec
from serve.router.choose import Capacity
from serve.router.flights import ANSWER_TOKENS, CONFIRM_S, Event, Flights, Moment, Sent, asked
from serve.router.router import Router

BODY = json.dumps({"model": "m", "messages": [{"role": "user", "content": "x" * 4096}]}).encode()


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def router(clock: Clock) -> Router:
    made = Router(RouterSpec(), rng=Random(0), clock=clock)
    for name in ("a", "b"):
        made.place(name, Capacity(kv_tokens=100_000))
    return made


@pytest.fixture
def flights(router: Router, clock: Clock) -> Flights:
    return Flights(router, "one", clock)


def load(router: Router) -> dict[str, tuple[int, int]]:
    return {replica.id: (replica.num_requests, replica.num_waiting) for replica in router.replicas}


def sent_by(flights: Flights, body: bytes = BODY) -> Sent:
    sent = flights.send(body)
    assert sent is not None
    return sent


def test_a_request_is_counted_from_its_sending_to_its_end(flights: Flights, router: Router):
    where, name = sent_by(flights)
    assert load(router)[where] == (1, 1)
    flights.hear(where, [Event(Moment.began, name, 1000), Event(Moment.first_token, name)])
    assert load(router)[where] == (1, 0)
    flights.hear(where, [Event(Moment.ended, name), Event(Moment.ended, name)])
    assert load(router) == {"a": (0, 0), "b": (0, 0)}
    assert len(flights) == 0


def test_the_same_prompt_goes_where_it_went(flights: Flights):
    first = sent_by(flights)
    flights.hear(first.replica_id, [Event(Moment.began, first.flight), Event(Moment.ended, first.flight)])
    assert {sent_by(flights).replica_id for _ in range(3)} == {first.replica_id}


def test_a_request_that_never_came_is_forgotten(flights: Flights, router: Router, clock: Clock):
    sent_by(flights)
    clock.now_s += CONFIRM_S + 0.1
    flights.hear("a", [])
    assert load(router) == {"a": (0, 0), "b": (0, 0)}


def test_one_that_is_asked_for_again_before_it_came_is_counted_once(flights: Flights, router: Router):
    for _ in range(5):
        assert flights.send(BODY, request_id="it") is not None
    assert sum(requests for requests, _ in load(router).values()) == len(flights) == 1


def test_a_name_that_several_have_takes_none_from_a_replica(flights: Flights, router: Router):
    for number in range(3):
        sent = flights.send(BODY, request_id="all")
        assert sent is not None
        flights.hear(sent.replica_id, [Event(Moment.began, sent.flight, 1000)])
        assert sum(requests for requests, _ in load(router).values()) == number + 1


def test_one_that_came_is_kept_until_it_ends(flights: Flights, router: Router, clock: Clock):
    where, name = sent_by(flights)
    flights.hear(where, [Event(Moment.began, name)])
    clock.now_s += CONFIRM_S + 0.1
    flights.hear(where, [])
    assert load(router)[where] == (1, 1)


def test_one_that_another_replica_took_is_counted_there(flights: Flights, router: Router):
    where, name = sent_by(flights)
    other = "b" if where == "a" else "a"
    flights.hear(other, [Event(Moment.began, name, 1000)])
    assert load(router) == {where: (0, 0), other: (1, 1)}
    flights.hear(where, [Event(Moment.ended, name)])  # the first one's end comes late
    assert load(router)[other] == (1, 1)
    flights.hear(other, [Event(Moment.ended, name)])
    assert load(router)[other] == (0, 0)


def test_requests_of_other_routers_count(flights: Flights, router: Router):
    flights.hear("b", [Event(Moment.began, f"two.{n}", 5000) for n in range(3)])
    assert load(router)["b"] == (3, 3)
    assert {sent_by(flights).replica_id for _ in range(3)} == {"a"}


def test_what_is_told_of_a_replica_that_has_gone_is_ignored(flights: Flights, router: Router):
    where, name = sent_by(flights)
    router.drop(where)
    flights.hear(where, [Event(Moment.first_token, name), Event(Moment.ended, name), Event(Moment.began, "x", 1)])
    assert all(counts == (0, 0) for counts in load(router).values())


def test_without_replicas_nothing_is_sent(router: Router):
    router.drop("a")
    router.drop("b")
    assert Flights(router, "one").send(BODY) is None


def test_those_that_the_router_gave_up_leave_nothing(flights: Flights, router: Router, clock: Clock):
    for _ in range(3):
        where, name = sent_by(flights)
        flights.hear(where, [Event(Moment.began, name)])
    clock.now_s += RouterSpec().stale_after_s + 1
    sent_by(flights)
    flights.hear("a", [])
    assert len(flights) == 1


@given(st.binary(max_size=300))
def test_no_body_is_an_error(body: bytes):
    prompt, answer_tokens = asked(body)
    assert len(prompt) >= 0
    assert 0 <= answer_tokens <= ANSWER_TOKENS


def test_a_body_cut_short_still_has_its_beginning_in_common():
    prompt, _ = asked(BODY[:2000])
    assert prompt == BODY[:2000]


@pytest.mark.parametrize(
    ("limit", "expected"), [({}, ANSWER_TOKENS), ({"max_tokens": 5}, 5), ({"max_completion_tokens": 10**9}, 128)]
)
def test_no_more_is_expected_than_the_request_allows(limit: dict[str, int], expected: int):
    assert asked(json.dumps({"prompt": "x", **limit}).encode())[1] == expected


def test_deep_json_is_a_text():
    body = b"[" * 200_000
    assert asked(body)[0] == body


def test_a_request_that_is_asked_for_again_is_counted_once_and_new_replicas_get_their_share(
    router: Router, flights: Flights
):
    """As an old process of HAProxy does that knows `a` alone: it asks again through the newest one."""
    taken = []
    for number in range(8):
        sent = flights.send(b"{}", None, f"id-{number}")
        if sent is not None and sent.replica_id == "b":
            sent = flights.send(b"{}", None, f"id-{number}")
        assert sent is not None
        taken.append(sent.replica_id)
    assert sum(requests for requests, _ in load(router).values()) == 8
    assert taken.count("b") == 4


def test_an_id_that_a_client_gives_to_several_requests_loses_none(router: Router, flights: Flights):
    one = flights.send(b"{}", None, "same")
    two = flights.send(b"{}", None, "same")
    assert one is not None
    assert two is not None
    for sent in (one, two):
        flights.hear(sent.replica_id, [Event(Moment.began, sent.flight, 1)])
    assert sum(requests for requests, _ in load(router).values()) == 2
    for sent in (one, two):
        flights.hear(sent.replica_id, [Event(Moment.ended, sent.flight)])
    assert load(router) == {"a": (0, 0), "b": (0, 0)}
    three = flights.send(b"{}", None, "same")
    assert three is not None
    assert sum(requests for requests, _ in load(router).values()) == 1
