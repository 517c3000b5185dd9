from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from observations import CAPACITY, fleet

from conf.errors import UserError
from conf.schema.autoscale import AutoscalePolicy, AutoscaleSpec
from serve.autoscale.forecast import CREEP_PER_S
from serve.autoscale.policy import begin, decide
from serve.autoscale.settle import Calm, settle

calm = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
"""The machine's other work is no fault of a policy."""
OURS = [AutoscalePolicy.tokens, AutoscalePolicy.slo, AutoscalePolicy.forecast]
ALL = list(AutoscalePolicy)


def follow(spec: AutoscaleSpec, seen: list) -> list[int]:
    """Sizes that a policy asks for, one decision after another; what it asked for runs at the next."""
    memory, sizes, size = begin(spec), [], seen[0].target
    for at, observation in enumerate(seen):
        observation = fleet_at(observation, at * spec.interval_s, size)
        decision, memory = decide(spec, observation, memory)
        size = decision.target
        sizes.append(size)
    return sizes


def fleet_at(observation, now_s: float, size: int):
    return replace(observation, now_s=now_s, target=size, running=size)


loads = st.lists(st.floats(0, 200), min_size=1, max_size=40)


@pytest.mark.parametrize("policy", ALL)
@calm
@given(loads=loads, least=st.integers(0, 5), more=st.integers(0, 50))
def test_sizes_stay_within_bounds(policy, loads, least, more):
    spec = AutoscaleSpec(policy=policy, min_replicas=least, max_replicas=max(1, least + more), interval_s=30)
    seen = [fleet(1, load, running_requests=int(load * 10)) for load in loads]
    assert all(spec.min_replicas <= size <= spec.max_replicas for size in follow(spec, seen))


@pytest.mark.parametrize("policy", OURS)
@calm
@given(low=st.floats(0, 90), more=st.floats(0, 90), size=st.integers(1, 60))
def test_more_load_never_makes_a_smaller_fleet(policy, low, more, size):
    spec = AutoscaleSpec(policy=policy)
    few, _ = decide(spec, fleet(size, low), begin(spec))
    many, _ = decide(spec, fleet(size, low + more), begin(spec))
    assert many.target >= few.target


@pytest.mark.parametrize("policy", ALL)
@calm
@given(load=st.floats(0, 500), size=st.integers(0, 100), age_s=st.floats(30.1, 1e6))
def test_stale_metrics_hold_the_size(policy, load, size, age_s):
    spec = AutoscaleSpec(policy=policy, min_replicas=0)
    memory = begin(spec)
    decision, after = decide(spec, fleet(size, load, metrics_age_s=age_s), memory)
    assert decision.target == size
    assert after == memory
    assert "held" in decision.reason


@pytest.mark.parametrize("policy", OURS)
@calm
@given(noise=st.lists(st.floats(0.97, 1.03), min_size=120, max_size=200), load=st.floats(1, 60))
def test_steady_load_changes_direction_at_most_once_a_minute(policy, noise, load):
    spec = AutoscaleSpec(policy=policy, interval_s=10)
    sizes = follow(spec, [fleet(max(1, round(load)), load * each) for each in noise])
    turns, direction = [], 0
    for at in range(1, len(sizes)):
        step = sizes[at] - sizes[at - 1]
        if step and (step > 0) != (direction > 0):
            turns += [at * spec.interval_s] if direction else []
            direction = step
    assert all(later - sooner >= 60 for sooner, later in pairwise(turns))


@pytest.mark.parametrize("policy", OURS)
@calm
@given(requests=st.integers(1, 3000), size=st.integers(1, 40))
def test_never_below_what_still_has_to_be_answered(policy, requests, size):
    spec = AutoscaleSpec(policy=policy, interval_s=30, max_replicas=1000)
    last = follow(spec, [fleet(size, 0.0, running_requests=requests)] * 30)[-1]
    assert last >= min(size, math.ceil(requests / CAPACITY.max_num_seqs))


@pytest.mark.parametrize("policy", OURS)
@calm
@given(load=st.floats(0, 1000), running=st.integers(0, 50), draining=st.integers(0, 50))
def test_few_start_at_the_same_time_and_draining_ones_are_no_capacity(policy, load, running, draining):
    spec = AutoscaleSpec(policy=policy, max_replicas=1000, min_replicas=0)
    seen = fleet(running, load, draining=draining, waiting_requests=1)
    decision, _ = decide(spec, seen, begin(spec))
    assert decision.target <= running + max(4, running)
    without, _ = decide(spec, fleet(running, load, waiting_requests=1), begin(spec))
    assert decision.target == without.target


@pytest.mark.parametrize("policy", OURS)
def test_an_idle_service_goes_to_zero_and_the_first_request_wakes_it(policy):
    spec = AutoscaleSpec(policy=policy, min_replicas=0, interval_s=10)
    sizes = follow(spec, [fleet(3)] * 60)
    assert sizes[-1] == 0
    assert sorted(sizes, reverse=True) == sizes
    assert sizes[29] >= 1, "not before scale_to_zero_s"
    woken, _ = decide(spec, fleet(0, waiting_requests=1), begin(spec))
    assert woken.target == 1
    asleep, _ = decide(spec, fleet(0), begin(spec))
    assert asleep.target == 0


@pytest.mark.parametrize("policy", OURS)
def test_an_idle_service_sleeps_as_soon_as_it_was_told_to(policy):
    spec = AutoscaleSpec(policy=policy, min_replicas=0, interval_s=10, scale_to_zero_s=60)
    sizes = follow(spec, [fleet(3)] * 10)
    assert sizes[:6] == [3] * 6, "the window of 180 s still holds them"
    assert sizes[6] == 0, "60 s after it was first seen idle"
    asked = follow(spec, [fleet(3, waiting_requests=1)] * 10)
    assert min(asked) >= 1
    at_once, _ = decide(AutoscaleSpec(policy=policy, min_replicas=0, scale_to_zero_s=0), fleet(3), begin(spec))
    assert at_once.target == 3, "nothing was seen yet"


def test_what_is_expected_keeps_replicas_awake():
    """Bursts that come again: the forecast holds what they need, however long the gap is."""
    spec = AutoscaleSpec(min_replicas=0, scale_to_zero_s=60)
    calm, now = Calm(), 0.0
    while now < 170:
        decision, calm = settle(spec, replace(fleet(3), now_s=now), 3.0, calm)
        assert decision.target == 3
        now += 10


@pytest.mark.parametrize("policy", OURS)
def test_a_policy_that_just_began_takes_nothing_away(policy):
    spec = AutoscaleSpec(policy=policy)
    decision, _ = decide(spec, fleet(50), begin(spec))
    assert decision.target == 50


def test_tokens_sizes_by_utilization_and_shrinks_after_the_window():
    spec = AutoscaleSpec(policy=AutoscalePolicy.tokens, interval_s=10)
    sizes = follow(spec, [fleet(7, 14.0)] * 3 + [fleet(7, 3.5)] * 40)
    assert sizes[:3] == [14, 20, 20]
    assert sizes[3:20] == [20] * 17, "the window still holds the peak"
    assert sizes[-1] == 5


def test_slo_cuts_its_share_when_late_and_takes_back_a_cut_that_did_not_help():
    spec = AutoscaleSpec(policy=AutoscalePolicy.slo, interval_s=10)
    late = fleet(10, 7.0, ttft_s=5.0)
    memory = begin(spec)
    shares = []
    for at in range(40):
        _, memory = decide(spec, fleet_at(late, at * 10.0, 10), memory)
        shares.append(memory.utilization)
    assert min(shares) == pytest.approx(0.7 * 0.8)
    assert shares[-1] in (pytest.approx(0.7), pytest.approx(0.7 * 0.8))


def test_forecast_grows_before_tokens_does_on_a_rise():
    ramp = [fleet(5, 2.0)] * 60 + [fleet(5, 2.0 + 0.05 * at) for at in range(90)]
    sizes = {policy: follow(AutoscaleSpec(policy=policy), ramp) for policy in OURS}
    first = {policy: next(at for at, size in enumerate(each) if size > 5) for policy, each in sizes.items()}
    assert first[AutoscalePolicy.forecast] < first[AutoscalePolicy.tokens]


def test_forecast_trusts_a_load_that_keeps_to_what_was_expected_until_it_does_not():
    spec = AutoscaleSpec(policy=AutoscalePolicy.forecast, interval_s=10)

    def share_after(seen: list) -> float:
        memory = begin(spec)
        for at, observation in enumerate(seen):
            _, memory = decide(spec, fleet_at(observation, at * spec.interval_s, 12), memory)
        return memory.share

    steady = [fleet(12, 8.0)] * 60
    assert share_after(steady[:2]) == pytest.approx(0.65 + 10 * CREEP_PER_S)
    assert share_after(steady) == 0.95
    assert share_after([*steady, fleet(12, 9.0)]) == 0.65, "more than was expected"
    assert share_after([*steady, fleet(12, 8.0, ttft_s=3.0)]) == 0.65, "too late"
    assert share_after([*steady, fleet(12, 7.0)]) == 0.95, "less than was expected"
    sizes = follow(spec, [fleet(12, 8.0)] * 80)
    assert (sizes[0], sizes[-1]) == (12, 9)


@pytest.mark.parametrize(
    "changes",
    [
        {"scale_down_window_s": 60.0},
        {"utilization": 0.0},
        {"max_replicas": 0},
        {"long_window_s": 1.0},
        {"forecast_max_utilization": 0.5},
    ],
)
def test_settings_that_make_no_sense_are_refused_in_one_line(changes):
    with pytest.raises(UserError, match=rf"^autoscale\.{next(iter(changes))} must be [^\n]*$"):
        AutoscaleSpec(**changes)


@calm
@given(counts=st.lists(st.integers(0, 400), min_size=1, max_size=60), start=st.integers(0, 30))
def test_requests_decides_as_ray_serve_does(counts, start):
    """Against ray's own functions, with the same averages."""
    theirs = pytest.importorskip("ray.serve.autoscaling_policy")
    from ray.serve.config import AutoscalingConfig

    spec = AutoscaleSpec(policy=AutoscalePolicy.requests, interval_s=15, min_replicas=0, max_replicas=100)
    config = AutoscalingConfig(min_replicas=0, max_replicas=100)
    policy = theirs._apply_autoscaling_config(theirs.default_autoscaling_policy)
    memory, size, state, recent = begin(spec), start, {}, []
    clock = SimpleNamespace(time=lambda: now)
    kept, theirs.time = theirs.time, clock
    try:
        for at, count in enumerate(counts):
            now = at * spec.interval_s
            recent = [*recent, count][-2:]
            context = SimpleNamespace(
                current_num_replicas=size,
                target_num_replicas=size,
                # theirs rounds up what a quotient of floats puts a hair above a whole number
                total_num_requests=max(0.0, sum(recent) / len(recent) - 1e-9),
                config=config,
                policy_state=state,
            )
            wanted, state = policy(context)
            wanted = min(max(math.ceil(wanted), 0), 100)
            seen = fleet_at(fleet(size, running_requests=count), now, size)
            decision, memory = decide(spec, seen, memory)
            assert decision.target == wanted
            size = wanted
    finally:
        theirs.time = kept
