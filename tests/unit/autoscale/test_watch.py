from __future__ import annotations

import math
from dataclasses import asdict, replace

from hypothesis import given
from hypothesis import strategies as st

from conf.schema.autoscale import AutoscaleSpec
from serve.autoscale.mean import ANSWER_TOKENS, PRIOR
from serve.autoscale.watch import Report, Told, Watch, read_report

SPEC = AutoscaleSpec(short_window_s=10.0, long_window_s=20.0, interval_s=1.0)
FRESH = Report(start_s=7.0, prefill_tokens_per_s=1000.0, decode_tokens_per_s=200.0)


def see(watch: Watch, now_s: float, queued: float = 0.0, age_s: float = 0.0, **reports: Report):
    told = {name: Told(age_s, report) for name, report in reports.items()}
    return watch.see(now_s, target=len(reports), running=list(reports), told=told, queued=queued)


@given(counts=st.lists(st.integers(0, 50), min_size=2, max_size=30), tokens=st.integers(1, 500))
def test_what_arrives_in_a_window_is_counted_whoever_it_went_to(counts: list[int], tokens: int):
    watch = Watch(replace(SPEC, short_window_s=1e3, long_window_s=1e3, scale_down_window_s=2e3), 8, 0.0)
    see(watch, 0.0, a=FRESH)
    came = {"a": 0, "b": 0}
    for at, count in enumerate(counts, 1):
        came["b" if at % 2 else "a"] += count
        reports = {name: replace(FRESH, arrived=n, prompt_tokens=n * tokens) for name, n in came.items()}
        seen = see(watch, float(at), **reports)
    assert math.isclose(seen.short_prompt_tokens_per_s * 1e3, sum(counts) * tokens, abs_tol=1e-6)
    assert math.isclose(seen.short_answer_tokens_per_s * 1e3, sum(counts) * ANSWER_TOKENS, abs_tol=1e-6)


def test_a_few_requests_at_once_are_no_rate_while_there_is_no_past():
    watch = Watch(SPEC, 8, 0.0)
    see(watch, 0.0, a=FRESH)
    busy = replace(FRESH, arrived=10, prompt_tokens=1000)
    assert [see(watch, now_s, a=busy).short_prompt_tokens_per_s for now_s in (1.0, 5.0, 10.0)] == [100.0] * 3


def test_a_replica_that_leaves_takes_nothing_of_the_past_with_it():
    watch = Watch(SPEC, 8, 0.0)
    see(watch, 0.0, a=FRESH, b=FRESH)
    busy = replace(FRESH, arrived=10, prompt_tokens=1000)
    before = see(watch, 5.0, a=busy, b=busy)
    after = see(watch, 5.0, a=busy)
    assert after.short_prompt_tokens_per_s == before.short_prompt_tokens_per_s == 200


def test_what_was_counted_before_the_watch_began_is_no_arrival():
    watch = Watch(SPEC, 8, 100.0)
    old = replace(FRESH, arrived=1e6, prompt_tokens=1e9)
    assert see(watch, 100.0, a=old).short_prompt_tokens_per_s == 0
    late = Watch(SPEC, 8, 100.0)
    late.see(100.0, target=1, running=["a"], told={}, queued=0)
    assert see(late, 101.0, a=old).short_prompt_tokens_per_s == 0


def test_requests_that_wait_in_front_are_arrivals_and_wait():
    watch = Watch(SPEC, 8, 0.0)
    see(watch, 0.0, a=FRESH)
    busy = replace(FRESH, arrived=10, prompt_tokens=1000, in_flight=8, waiting=3, waiting_tokens=300)
    seen = see(watch, 1.0, queued=20, a=busy)
    assert (seen.waiting_requests, seen.running_requests, seen.waiting_prompt_tokens) == (23, 5, 2300)
    assert seen.short_prompt_tokens_per_s == 300
    # they come to a replica: nobody has arrived
    moved = replace(busy, arrived=30, prompt_tokens=3000)
    assert see(watch, 2.0, a=moved).short_prompt_tokens_per_s == 300


def test_metrics_are_as_old_as_those_of_the_replica_in_the_middle():
    watch = Watch(SPEC, 8, 0.0)
    ages = {"a": 1.0, "b": 50.0, "c": 2.0}
    told = {name: Told(age_s, FRESH) for name, age_s in ages.items()}
    assert watch.see(0.0, target=3, running=list(ages), told=told, queued=0).metrics_age_s == 2.0
    assert watch.see(0.0, target=5, running=[*ages, "d", "e", "f"], told=told, queued=0).metrics_age_s == 50.0
    assert watch.see(0.0, target=2, running=["d"], told={}, queued=0).metrics_age_s == math.inf
    assert watch.see(0.0, target=0, running=[], told={}, queued=0).metrics_age_s == 0.0


def test_what_replicas_measured_is_kept_while_none_runs_and_what_the_user_said_goes_before():
    watch = Watch(replace(SPEC, decode_tokens_per_s=500.0), 8, 0.0)
    see(watch, 0.0, a=FRESH, b=replace(FRESH, prefill_tokens_per_s=3000.0, start_s=9.0))
    seen = see(watch, 1.0)
    assert (seen.capacity.prefill_tokens_per_s, seen.capacity.decode_tokens_per_s) == (2000.0, 500.0)
    assert seen.start_s == 8.0


def test_answers_are_expected_to_be_as_long_as_they_were():
    watch = Watch(SPEC, 8, 0.0)
    see(watch, 0.0, a=FRESH)
    seen = see(watch, 10.0, a=replace(FRESH, arrived=10, answers=10, answer_tokens=300))
    # one answer that was short says little, many of them all
    assert seen.short_answer_tokens_per_s == (10 * 30 + PRIOR * ANSWER_TOKENS) / (10 + PRIOR)
    seen = see(watch, 20.0, a=replace(FRESH, arrived=20, answers=10_010, answer_tokens=300_300))
    assert seen.short_answer_tokens_per_s == 30


def test_a_report_comes_back_from_numbers_of_which_some_are_unknown():
    report = replace(FRESH, arrived=3.0, ttft_s=0.5)
    assert read_report({**asdict(report), "serve_running_requests": 4.0}) == report


def test_a_rise_of_many_requests_is_known_in_a_quarter_of_the_window_and_one_of_few_takes_it_all():
    load = {}
    for rate in (1, 8, 100):
        watch = Watch(SPEC, 8, 0.0)
        seen = see(watch, 0.0, a=FRESH)
        for now_s in range(1, 21):  # quiet, and then a step
            came = rate * max(0, now_s - 10)
            seen = see(watch, float(now_s), a=replace(FRESH, arrived=came, prompt_tokens=100.0 * came))
            load[rate, now_s - 10] = seen.least_prompt_tokens_per_s / (100 * rate)
    assert load[8, 1] < load[100, 1] < 0.3  # a second is a moment, whatever came in it
    assert load[1, 4] == 0
    assert 0.5 < load[8, 3] < 0.7
    assert 0.8 < load[100, 3] < 0.95
    assert all(0.3 < load[rate, 10] < 1 for rate in (1, 8, 100))


@given(ages=st.lists(st.floats(0.0, 1.5), min_size=12, max_size=12))
def test_a_steady_load_is_no_rise_however_old_the_reports_are(ages: list[float]):
    watch = Watch(SPEC, 8, 0.0)
    see(watch, 0.0, a=FRESH)
    looked_s = 0.0
    for now_s, age_s in enumerate(ages, 2):
        looked_s = max(looked_s, now_s - age_s)  # a report is followed by none that is older
        report = replace(FRESH, arrived=50 * looked_s, prompt_tokens=5000 * looked_s)
        seen = see(watch, float(now_s), age_s=now_s - looked_s, a=report)
        assert seen.least_prompt_tokens_per_s <= 5000
