from __future__ import annotations

import sys
from pathlib import Path
from random import Random

import pytest

ROOT = Path(__file__).resolve().parents[3]
SHARED_TRACE = ROOT.parent / "shared" / "data" / "mooncake_synthetic_trace.jsonl"
sys.path.insert(0, str(ROOT / "scripts"))

import bench_router as b  # noqa: E402
from simulated_replicas import Machine, Request, SimulatedReplica, simulate  # noqa: E402

from conf.schema.router import RouterSpec  # noqa: E402


class First:
    """Everything goes to the first replica."""

    def choose(self, request: Request, now_s: float) -> int:
        return 0

    def first_token(self, request: Request) -> None: ...

    def ended(self, request: Request) -> None: ...


def finish(requests: list[Request], machine: Machine) -> SimulatedReplica:
    replica = SimulatedReplica(machine)
    for _ in simulate(requests, First(), [replica]):
        pass
    assert replica.is_idle
    assert replica.waiting_tokens == 0
    return replica


def test_a_request_alone_takes_its_steps():
    machine = Machine(step_tokens=100, prefill_tokens_per_s=1000, step_s=0.01, answer_token_s=0.001)
    request = Request(1.0, list(range(16)), 256, 5)
    replica = finish([request], machine)
    assert request.first_token_s == pytest.approx(1.0 + 3 * 0.01 + 0.256)
    assert request.end_s == pytest.approx(request.first_token_s + 4 * 0.011)
    assert replica.computed_tokens == 256


def test_a_prefix_is_computed_once_and_the_last_token_always():
    machine = Machine()
    one, two = Request(0.0, list(range(16)), 256, 5), Request(9.0, list(range(16)), 256, 5)
    replica = finish([one, two], machine)
    assert (one.cached_tokens, two.cached_tokens) == (0, 240)
    assert replica.computed_tokens == 256 + 16


def test_what_was_used_for_longest_is_forgotten():
    machine = Machine(kv_tokens=16 * 40)
    requests = [
        Request(10.0 * at, [100 * name + block for block in range(16)], 257, 1)
        for at, name in enumerate((0, 1, 2, 0, 2))
    ]
    finish(requests, machine)
    assert [request.cached_tokens for request in requests[:3]] == [0, 0, 0]
    assert requests[3].cached_tokens < requests[4].cached_tokens == 256


def test_a_full_cache_makes_requests_wait_and_all_end():
    machine = Machine(kv_tokens=16 * 40, max_requests=3)
    rng = Random(0)
    requests = [
        Request(0.001 * at, [rng.randrange(3) * 1000 + block for block in range(10)], 170, rng.randrange(1, 60))
        for at in range(100)
    ]
    finish(requests, machine)
    assert all(request.end_s >= request.first_token_s > request.arrival_s for request in requests)


@pytest.mark.skipif(not SHARED_TRACE.exists(), reason="the Mooncake trace is not beside the checkout")
def test_prefixes_are_found_and_first_tokens_come_sooner_than_by_power_of_two():
    machine = Machine()
    trace = b.read_trace(str(SHARED_TRACE), 8, 8, seed=0, kv_tokens=machine.kv_tokens)[:1500]
    rules = b.rules(4, machine, 19, RouterSpec())
    plain, ours = (
        b.run(b.at_load(trace, 0.9, 4, machine), rules[name](0), 4, machine) for name in ("power_of_two", "prefix")
    )
    assert ours["hit_rate"] >= 1.5 * plain["hit_rate"]
    assert ours["ttft_mean_ms"] <= 0.7 * plain["ttft_mean_ms"]
    assert ours["imbalance"] <= 1.2 * plain["imbalance"]


def test_one_prefix_for_all_does_not_gather_all_on_one_replica():
    machine = Machine()
    requests = b.hot_prefixes(1000, 1, seed=0)
    rules = b.rules(4, machine, 32, RouterSpec())
    plain, ours = (
        b.run(b.at_load(requests, 2.0, 4, machine), rules[name](0), 4, machine) for name in ("power_of_two", "prefix")
    )
    assert ours["ttft_mean_ms"] <= 1.3 * plain["ttft_mean_ms"]
    assert ours["imbalance"] <= 1.3
