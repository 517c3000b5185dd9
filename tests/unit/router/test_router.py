from __future__ import annotations

from random import Random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from conf.schema.router import RouterPolicy, RouterSpec
from serve.router.choose import Capacity
from serve.router.router import Choice, Flight, Router

CAPACITY = Capacity(kv_tokens=4096, max_requests=16)
PROMPT = bytes(range(256)) * 16


class Clock:
    def __init__(self):
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def fleet(size: int, clock: Clock | None = None, seed: int = 0, **spec: object) -> Router:
    router = Router(RouterSpec(block_tokens=16, **spec), rng=Random(seed), clock=clock or Clock())  # pyright: ignore[reportArgumentType]
    for number in range(size):
        router.place(f"r{number}", CAPACITY)
    return router


def test_a_prompt_goes_where_it_was_before():
    router = fleet(8)
    for _ in range(20):
        choice = router.choose(PROMPT)
        router.ended(router.began("r5", choice))
        assert router.choose(PROMPT).replica_id == "r5"
        assert router.choose(PROMPT[:2048] + b"x" * 2048).replica_id == "r5"


def test_only_what_is_not_cached_waits():
    router = fleet(1)
    first = router.began("r0", router.choose(PROMPT, 10))
    assert router.replicas[0].waiting_tokens == 1024 + 10
    router.first_token(first)
    router.first_token(first)
    assert router.replicas[0].waiting_tokens == 10
    assert router.replicas[0].num_waiting == 0
    router.began("r0", router.choose(PROMPT + b"y" * 400, 10))
    assert router.replicas[0].waiting_tokens == 10 + 100 + 10
    router.ended(first)
    router.ended(first)
    assert (router.replicas[0].waiting_tokens, router.replicas[0].num_requests) == (110, 1)


def test_tokens_and_text_both_have_prefixes():
    router = fleet(4)
    tokens = list(range(100))
    router.began("r2", router.choose(tokens))
    assert router.choose([*tokens, 7]).cached_tokens == {2: 96}
    assert router.choose([7, *tokens]).cached_tokens == {}


def test_a_replica_that_is_gone_or_new_holds_nothing():
    router = fleet(2)
    flight = router.began("r1", router.choose(PROMPT, 5))
    router.drop("r1")
    router.drop("unknown")
    assert router.num_blocks == 0
    assert router.choose(PROMPT).replica_id == "r0"
    router.place("r1", CAPACITY)
    router.ended(flight)  # of the replica that was: the new one has no part in it
    assert router.choose(PROMPT).cached_tokens == {}
    assert [(replica.waiting_tokens, replica.num_requests) for replica in router.replicas] == [(0, 0), (0, 0)]


def test_a_replica_that_drains_gets_nothing_and_remembers_all():
    router = fleet(2)
    router.began("r1", router.choose(PROMPT))
    router.set_open("r1", False)
    router.set_open("r1", False)
    assert router.choose(PROMPT, session="s").replica_id == "r0"
    assert router.choose(PROMPT).cached_tokens == {}
    router.set_open("r1", True)
    assert router.choose(PROMPT).replica_id == "r1"
    router.set_open("r0", False)
    router.set_open("r1", False)
    assert router.choose(PROMPT).replica_id is None


def test_a_session_comes_back_to_its_replica():
    router = fleet(8, policy=RouterPolicy.least_tokens)
    router.ended(router.began("r6", router.choose(b"hello", session="s")))
    assert router.choose(b"other", session="s").replica_id == "r6"
    router.drop("r6")
    assert router.choose(b"other", session="s").replica_id != "r6"


def test_sessions_are_bounded():
    router = fleet(4, policy=RouterPolicy.least_tokens, max_sessions=3)
    for number in range(10):
        router.ended(router.began("r3", router.choose(b"", session=f"s{number}")))
    assert [router.choose(b"", session=f"s{number}").replica_id for number in (6, 7, 9)] == ["r0", "r3", "r3"]


def test_a_request_whose_end_was_never_heard_is_forgotten():
    clock = Clock()
    router = fleet(2, clock, stale_after_s=60.0)
    lost = router.began("r0", router.choose(PROMPT, 100))
    clock.now_s = 30.0
    router.began("r0", router.choose(PROMPT, 100))
    clock.now_s = 61.0
    router.choose(PROMPT)
    assert router.replicas[0].num_requests == 1
    router.ended(lost)
    assert router.replicas[0].num_requests == 1


def test_what_was_sent_counts_half_after_a_minute():
    clock = Clock()
    router = fleet(2, clock)
    router.ended(router.began("r0", router.choose(PROMPT)))
    router.ended(router.began("r0", router.choose(PROMPT)))  # cached, and sent all the same
    clock.now_s = 60.0
    router.ended(router.began("r1", router.choose(b"")))
    assert router.replicas[0].recent_tokens == pytest.approx(1024)
    assert router.replicas[1].recent_tokens == 1


def test_new_prompts_of_an_idle_fleet_go_round():
    router = fleet(4, seed=3)
    for number in range(400):
        choice = router.choose(number.to_bytes(2, "big") * 512)
        assert choice.replica_id is not None
        router.ended(router.began(choice.replica_id, choice))
    sent = [replica.recent_tokens for replica in router.replicas]
    assert max(sent) / (sum(sent) / 4) < 1.05  # drawn at random alone it is 1.1 and more


def test_an_answer_pushes_out_what_was_used_for_longest():
    router = fleet(1)
    router.ended(router.began("r0", router.choose(PROMPT)))
    assert router.choose(PROMPT).cached_tokens == {0: 1024}
    router.ended(router.began("r0", router.choose(b"")), answer_tokens=4096 - 512)
    assert router.choose(PROMPT).cached_tokens == {0: 512}


def test_an_unknown_replica_is_the_callers_mistake():
    router = fleet(1)
    with pytest.raises(KeyError):
        router.began("r9", router.choose(PROMPT))


def test_equal_histories_choose_equally():
    def history() -> list[str]:
        router, rng = fleet(16, seed=3), Random(1)
        chosen = []
        for _ in range(200):
            choice = router.choose(bytes(rng.choices(b"ab", k=rng.randrange(300))), rng.randrange(50))
            assert choice.replica_id is not None
            flight = router.began(choice.replica_id, choice)
            chosen.append(choice.replica_id)
            if rng.random() < 0.7:
                router.ended(flight)
        return chosen

    assert history() == history()


class RouterMachine(RuleBasedStateMachine):
    """Whatever comes in whatever order: live replicas only, loads that add up, memory within its bound."""

    @initialize(policy=st.sampled_from(RouterPolicy))
    def start(self, policy: RouterPolicy):
        self.router = fleet(0, policy=policy, max_blocks=64)
        self.open: dict[str, bool] = {}
        self.choices: list[Choice] = []
        self.flights: list[Flight] = []
        self.running: dict[str, int] = {}

    @rule(replica=st.sampled_from("abcd"))
    def place(self, replica: str):
        self.router.place(replica, CAPACITY)
        self.open[replica], self.running[replica] = True, 0
        self.flights = [flight for flight in self.flights if flight.replica.id != replica]

    @rule(replica=st.sampled_from("abcd"))
    def drop(self, replica: str):
        self.router.drop(replica)
        self.open.pop(replica, None)
        self.running.pop(replica, None)

    @rule(replica=st.sampled_from("abcd"), is_open=st.booleans())
    def set_open(self, replica: str, is_open: bool):
        self.router.set_open(replica, is_open)
        if replica in self.open:
            self.open[replica] = is_open

    @rule(prompt=st.text("ab", max_size=600), answer=st.integers(0, 100), session=st.none() | st.sampled_from("st"))
    def choose(self, prompt: str, answer: int, session: str | None):
        choice = self.router.choose(prompt.encode(), answer, session)
        taking = {replica for replica, is_open in self.open.items() if is_open}
        assert choice.replica_id in (taking or {None})
        self.choices.append(choice)

    @precondition(lambda self: self.choices and self.open)
    @rule(data=st.data())
    def began(self, data: st.DataObject):
        replica = data.draw(st.sampled_from(sorted(self.open)))
        self.flights.append(self.router.began(replica, data.draw(st.sampled_from(self.choices))))
        self.running[replica] += 1

    @precondition(lambda self: self.flights)
    @rule(data=st.data(), has_first=st.booleans())
    def ended(self, data: st.DataObject, has_first: bool):
        flight = data.draw(st.sampled_from(self.flights))
        self.flights.remove(flight)
        if has_first:
            self.router.first_token(flight)
        self.router.ended(flight, 20)
        if flight.replica.id in self.running:
            self.running[flight.replica.id] -= 1

    @invariant()
    def all_adds_up(self):
        assert self.router.num_blocks <= 64
        for replica in self.router.replicas:
            assert replica.num_requests == self.running[replica.id]
            assert replica.waiting_tokens >= 0
            assert 0 <= replica.num_waiting <= replica.num_requests
            if not replica.num_requests:
                assert replica.waiting_tokens == 0


TestRouterMachine = RouterMachine.TestCase
TestRouterMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
