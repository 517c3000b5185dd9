from __future__ import annotations

from collections import Counter
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from conf.schema.router import RouterPolicy, RouterSpec
from serve.router.choose import Capacity, Replica, choose

CAPACITY = Capacity(kv_tokens=100_000, max_requests=8)


def replicas(*waiting: int, requests: int = 1) -> list[Replica]:
    return [
        Replica(id=str(slot), slot=slot, capacity=CAPACITY, waiting_tokens=tokens, num_requests=requests, num_waiting=0)
        for slot, tokens in enumerate(waiting)
    ]


def chosen(spec: RouterSpec, among: list[Replica], cached: dict[int, int], session: int | None = None, seed: int = 0):
    replica = choose(
        spec, among, prompt_tokens=1000, cached_tokens=cached, turn=seed, rng=Random(seed), session_slot=session
    )
    assert replica is not None
    return replica.id


def test_the_cached_prefix_wins_where_waiting_costs_less_than_computing():
    assert chosen(RouterSpec(prefill_weight=1.0), replicas(0, 700, 0), {1: 800}) == "1"
    assert chosen(RouterSpec(prefill_weight=2.0), replicas(0, 1500, 0), {1: 800}) == "1"


def test_the_cached_prefix_loses_where_waiting_costs_more():
    assert chosen(RouterSpec(prefill_weight=1.0), replicas(0, 900, 100), {1: 800}) == "0"
    assert chosen(RouterSpec(prefill_weight=2.0), replicas(0, 1700, 100), {1: 800}) == "0"


def test_queues_make_what_is_cached_worth_more():
    among = replicas(2000, 5000, 3000)
    assert chosen(RouterSpec(), among, {1: 800}) == "0"
    for replica in among:
        replica.num_waiting = 3
    assert chosen(RouterSpec(), among, {1: 800}) == "1"
    assert chosen(RouterSpec(queue_weight=0.0), among, {1: 800}) == "0"


def test_one_queue_makes_a_replica_less_attractive():
    among = replicas(0, 500)
    assert chosen(RouterSpec(), among, {1: 500}) == "1"
    among[1].num_waiting = 3
    assert chosen(RouterSpec(), among, {1: 500}) == "0"


def test_a_replica_far_ahead_gets_nothing_whatever_it_holds():
    spec = RouterSpec(imbalance_bound=1.5, imbalance_slack_tokens=0, queue_weight=1e6)
    assert chosen(spec, replicas(10, 100, 10), {1: 1000}) == "0"


def test_a_full_replica_comes_after_those_with_a_free_place():
    among = replicas(0, 500)
    among[0].num_requests = CAPACITY.max_requests
    assert chosen(RouterSpec(), among, {0: 1000}) == "1"
    among[1].num_requests = CAPACITY.max_requests
    assert chosen(RouterSpec(), among, {0: 1000}) == "0"


def test_a_session_breaks_ties_and_no_more():
    assert chosen(RouterSpec(), replicas(0, 100, 0), {0: 500, 1: 500}, session=1) == "1"
    assert chosen(RouterSpec(), replicas(0, 900, 0), {0: 500, 1: 500}, session=1) == "0"


def test_a_new_prompt_goes_to_the_less_loaded_of_two():
    spec = RouterSpec()
    firsts = Counter(chosen(spec, replicas(0, 10, 20, 30), {2: 50}, seed=seed) for seed in range(400))
    assert firsts["0"] > firsts["1"] > firsts["2"] > firsts["3"] == 0  # of any two, one has less than the last


def test_of_two_that_wait_alike_a_new_prompt_goes_to_the_one_that_was_sent_less():
    among = replicas(0, 0, 0, 0)
    for replica in among:
        replica.recent_tokens = 100.0 * replica.slot
    firsts = Counter(chosen(RouterSpec(), among, {}, seed=seed) for seed in range(400))
    assert firsts["0"] > firsts["1"] > firsts["2"] > firsts["3"] == 0
    among[3].recent_tokens = 0.0
    among[0].waiting_tokens = among[1].waiting_tokens = among[2].waiting_tokens = 0
    among[3].waiting_tokens = 10
    assert Counter(chosen(RouterSpec(), among, {}, seed=seed) for seed in range(400))["3"] == 0
    plain = RouterSpec(policy=RouterPolicy.power_of_two)
    assert len({chosen(plain, replicas(0, 0, 0, 0), {}, seed=seed) for seed in range(100)}) == 4


def test_a_new_prompt_may_go_to_the_least_loaded_of_all():
    spec = RouterSpec(fallback=RouterPolicy.least_tokens)
    assert {chosen(spec, replicas(30, 10, 20, 40), {}, seed=seed) for seed in range(50)} == {"1"}


def test_round_robin_goes_round():
    spec = RouterSpec(policy=RouterPolicy.round_robin)
    assert [chosen(spec, replicas(9, 0, 0), {}, seed=turn) for turn in range(4)] == ["0", "1", "2", "0"]


def test_least_tokens_looks_at_nothing_else():
    spec = RouterSpec(policy=RouterPolicy.least_tokens)
    assert chosen(spec, replicas(30, 10, 20), {0: 1000}) == "1"


FLEET = st.lists(
    st.builds(
        lambda waiting, requests, first: Replica(
            id="", slot=0, capacity=CAPACITY, waiting_tokens=waiting, num_requests=requests, num_waiting=first
        ),
        st.integers(0, 50_000),
        st.integers(0, 10),
        st.integers(0, 5),
    ),
    min_size=1,
    max_size=70,
)


@given(
    fleet=FLEET,
    policy=st.sampled_from(RouterPolicy),
    bound=st.floats(1, 4),
    slack=st.integers(0, 10_000),
    queue_weight=st.floats(0, 100),
    cached=st.dictionaries(st.integers(0, 69), st.integers(128, 5000)),
    session=st.none() | st.integers(0, 69),
    seed=st.integers(0, 9),
)
def test_whatever_is_known_the_bound_holds_and_equal_inputs_choose_equally(
    fleet: list[Replica],
    policy: RouterPolicy,
    bound: float,
    slack: int,
    queue_weight: float,
    cached: dict[int, int],
    session: int | None,
    seed: int,
):
    for slot, replica in enumerate(fleet):
        replica.id, replica.slot = str(slot), slot
    spec = RouterSpec(policy=policy, imbalance_bound=bound, imbalance_slack_tokens=slack, queue_weight=queue_weight)
    cached = {slot: tokens for slot, tokens in cached.items() if slot < len(fleet)}
    found = chosen(spec, fleet, cached, session, seed)
    assert found == chosen(spec, fleet, cached, session, seed)
    if policy is not RouterPolicy.round_robin:
        waiting = [replica.waiting_tokens for replica in fleet]
        first = fleet[int(found)]
        limit = bound * sum(waiting) / len(waiting) + slack
        assert first.waiting_tokens <= max(limit, min(waiting))
        if any(r.waiting_tokens <= limit and r.num_requests < CAPACITY.max_requests for r in fleet):
            assert first.num_requests < CAPACITY.max_requests or len(fleet) == 1
