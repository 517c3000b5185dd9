from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Gauge, Histogram

from serve.engine.service.saturation import UNBEGUN, read_page, step_s
from serve.engine.speed import Unbegun
from serve.middleware.scrape import page

STEP = "vllm:inter_token_latency_seconds"


def replica(running: int, waiting: int, kv: float, interactive: int, steps: list[float], wait_s: float = 0.0):
    registry = CollectorRegistry()
    figures = [("num_requests_running", running), ("num_requests_waiting", waiting), ("kv_cache_usage_perc", kv)]
    for name, value in figures:
        Gauge(f"vllm:{name}", "x", ("engine", "model_name"), registry=registry).labels("0", 'd"\\\n').set(value)
    held = Gauge("manta_requests_held", "x", ("priority",), registry=registry)
    held.labels("interactive").set(interactive)
    held.labels("batch").set(7)
    first = Gauge("manta_first_token_wait_seconds", "x", ("priority",), registry=registry)
    first.labels("interactive").set(wait_s)
    first.labels("batch").set(99)
    latency = Histogram(STEP, "x", ("engine",), registry=registry).labels("0")
    for step in steps:
        latency.observe(step)
    return list(registry.collect())


def test_a_page_of_all_replicas_is_added_up():
    text = page([("a", replica(3, 1, 0.2, 2, [0.1], 0.5)), ("b", replica(4, 0, 0.7, 1, [0.3], 0.1))]).decode()
    found = read_page(text, 5.0)
    assert found is not None
    assert (found.replicas, found.running, found.waiting, found.kv_fraction) == (2, 7, 1, 0.7)
    assert (found.interactive, found.deferrable, found.first_wait_s) == (3, 14, 0.5)
    before = read_page(page([("a", replica(0, 0, 0, 0, [0.1])), ("b", replica(0, 0, 0, 0, []))]).decode(), 4.0)
    step = step_s(before, found)
    assert step is not None
    assert abs(step - 0.3) < 1e-9
    assert step_s(found, found) is None


def test_whose_requests_have_no_token_yet_is_added_up_where_it_is_told():
    text = page([("a", replica(3, 1, 0.2, 2, [])), ("b", replica(4, 0, 0.7, 1, []))]).decode()
    silent = read_page(text, 0.0)
    lines = [(UNBEGUN, "interactive", "a", 2), (UNBEGUN, "batch", "a", 5), (UNBEGUN, "interactive", "b", 1)]
    text += "".join(f'{name}{{priority="{whose}",replica="{at}"}} {value}.0\n' for name, whose, at, value in lines)
    told = read_page(text, 0.0)
    assert silent is not None
    assert told is not None
    assert (silent.unbegun, told.unbegun) == (None, Unbegun(interactive=3, batch=5))


def test_an_engine_that_began_anew_has_no_step():
    old, new = (read_page(page([("a", replica(1, 0, 0, 0, steps))]).decode(), 0.0) for steps in ([0.5] * 9, [0.1]))
    assert old is not None
    assert new is not None
    assert step_s(old, new) is None
    assert step_s(None, new) is None


def test_a_server_of_vllms_own_does_not_say_whose_its_requests_are():
    found = read_page('vllm:num_requests_running{engine="0"} 2.0\nvllm:num_requests_waiting{engine="0"} 1.0', 0.0)
    assert found is not None
    assert (found.interactive, found.running, found.waiting) == (None, 2, 1)


@settings(deadline=None)
@given(st.text() | st.from_regex(r"(vllm:num_requests_(running|waiting)|manta_requests_held)\{?.*\}? ?[-+0-9a-zIN.]*"))
def test_noise_is_no_page_or_a_sane_one(text: str):
    found = read_page(text, 0.0)
    assert found is None or (found.running >= 0 and found.waiting >= 0 and found.kv_fraction >= 0)
