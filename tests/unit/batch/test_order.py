"""The order of a job's rows: what is decided of it, and what an engine's prefix cache makes of it."""

from __future__ import annotations

import json
import random
from collections import deque
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from prefix_cache import BLOCK_TOKENS, hit_rate
from step_engine import job_s

from conf.schema.batch import BatchJob, BatchSpec, Order
from conf.schema.data import DataSpec
from conf.schema.engine import EngineSpec
from conf.schema.sampling import SamplingSpec
from conf.schema.task import Task
from pipelines.batch.order import MAX_UNITS, Ordering, Waiting, Window, plan_order
from pipelines.batch.unit import Unit

NAME = "shared/data/mooncake_synthetic_trace.jsonl"
TRACE = next((path / NAME for path in Path(__file__).parents if (path / NAME).exists()), None)
"""A public trace; it lies beside the repository where there is one."""
ORDERING = Ordering(by_prefix=True, longest_first=True, num_seqs=2, units=9, next_units=1, rows=1 << 30, spare_rows=0)


# the engine's cache


def feed_like_a_replica(prompts: list[bytes], unit_rows: int, ordering: Ordering) -> list[bytes]:
    """Rows come by units, so many at a time; the next unit comes when one has been taken whole."""
    window: Window[int] = Window(ordering)
    units = deque(range(0, len(prompts), unit_rows))
    left: dict[int, int] = {}

    def come() -> None:
        start = units.popleft()
        rows = prompts[start : start + unit_rows]
        left[start] = len(rows)
        window.add(start, [Waiting(id="", tokens=tokens, sampling=SamplingSpec()) for tokens in rows])

    while units and len(left) < ordering.units:
        come()
    order = []
    while (turn := window.take()) is not None:
        order.append(turn[1].tokens)
        left[turn[0]] -= 1
        if not left[turn[0]] and units:
            come()
    return order


def grouped_prompts(groups: int, rows: int) -> list[bytes]:
    rng = np.random.default_rng(1)
    heads = rng.integers(0, 5000, (groups, 400))
    prompts = [np.concatenate([heads[n % groups], rng.integers(0, 5000, 30)]) for n in range(groups * rows)]
    rng.shuffle(prompts)
    return [prompt.astype(">i4").tobytes() for prompt in prompts]


def test_shuffled_groups_reach_the_best_possible_hit_rate_with_a_cache_of_two_groups() -> None:
    prompts = grouped_prompts(groups=40, rows=12)
    best, cache_tokens = hit_rate(prompts), 2 * 512
    ordering = replace(ORDERING, units=480)
    assert hit_rate(prompts, cache_tokens) < 0.1
    assert hit_rate(feed_like_a_replica(prompts, 32, ordering), cache_tokens) > 0.999 * best > 0.8


def test_a_window_of_a_part_of_the_job_gets_most_of_it() -> None:
    prompts = grouped_prompts(groups=20, rows=100)
    best = hit_rate(prompts)
    held = replace(ORDERING, units=10, rows=400, spare_rows=100)
    assert hit_rate(feed_like_a_replica(prompts, 50, held), 1024) > 0.9 * best


@pytest.mark.skipif(TRACE is None, reason="no trace beside the repository")
@pytest.mark.parametrize("window_rows", [8192])
def test_a_real_trace_reaches_nine_tenths_of_the_best_possible(window_rows: int) -> None:
    assert TRACE is not None
    shrink, cache_tokens = 16, 256_000
    size = 512 // shrink
    lines = [json.loads(line) for line in TRACE.read_text().splitlines()]
    blocks = {name: block_tokens(name, size) for name in {name for line in lines for name in line["hash_ids"]}}
    # each request's blocks, cut to its length; block ids say what is shared
    prompts = [
        b"".join(blocks[name] for name in line["hash_ids"])[: 4 * max(line["input_length"] // shrink, 1)]
        for line in lines
    ]
    assert size % BLOCK_TOKENS == 0
    job = BatchJob(data=DataSpec(input="x"), batch=BatchSpec(window_rows=window_rows))
    work: Any = SimpleNamespace(pending=units_of(len(prompts), 249), pending_rows=len(prompts))
    best, as_input = hit_rate(prompts), hit_rate(prompts, cache_tokens)
    ordered = hit_rate(feed_like_a_replica(prompts, 249, plan_order(job, work, 1)), cache_tokens)
    print(f"best {best:.4f}, input order {as_input:.4f}, ordered {ordered:.4f}")
    assert ordered > 0.9 * best
    assert ordered > as_input


def block_tokens(name: int, size: int) -> bytes:
    return np.random.default_rng(name).integers(0, 32_000, size).astype(">i4").tobytes()


# what is decided


def units_of(rows: int, unit_rows: int) -> list[Unit]:
    sizes = [min(unit_rows, rows - start) for start in range(0, rows, unit_rows)]
    return [Unit(id=str(n), fingerprint="", rows=size) for n, size in enumerate(sizes)]


def planned(
    rows: int,
    unit_rows: int,
    task: Task = Task.generate,
    vllm: Any = None,
    num_replicas: int = 1,
    pool: str = "1",
    **changes: Any,
) -> Ordering:
    batch = {key: changes.pop(key) for key in ("order", "window_rows") if key in changes}
    engine = EngineSpec(vllm=vllm or {}, num_replicas=pool, **changes)
    job = BatchJob(task=task, engine=engine, batch=BatchSpec(**batch), data=DataSpec(input="x"))
    work: Any = SimpleNamespace(pending=units_of(rows, unit_rows), pending_rows=rows)
    return plan_order(job, work, num_replicas)


def test_auto_orders_where_answers_are_text_and_by_prefix_where_a_cache_keeps_them() -> None:
    ways = {
        "auto": planned(1000, 60),
        "uncached": planned(1000, 60, vllm={"enable_prefix_caching": False}),
        "embed": planned(1000, 60, Task.embed),
        "embed by prefix": planned(1000, 60, Task.embed, order=Order.prefix),
        "input": planned(1000, 60, order=Order.input),
    }
    assert {name: (way.by_prefix, way.longest_first) for name, way in ways.items()} == {
        "auto": (True, True),
        "uncached": (False, True),
        "embed": (False, False),
        "embed by prefix": (True, True),
        "input": (False, False),
    }


def test_one_replica_holds_what_the_window_allows() -> None:
    assert planned(1000, 63).units == 16
    assert planned(1000, 63).spare_rows == 0  # all of it at once: nothing follows
    large = planned(100_000, 1000)
    assert (large.units, large.rows, large.spare_rows) == (9, 9000 - 512, 512)  # 8,192 and what is held back
    assert planned(100_000, 1000, window_rows=3000).units == 4
    assert planned(100_000, 100).units == MAX_UNITS
    assert (large.first_tokens, large.first_units) == (16 * 8192, 9)
    assert planned(600, 600).first_units == 1  # no more than there are
    assert planned(100_000, 1000, order=Order.input).first_tokens is None


def test_one_of_several_replicas_holds_its_share_and_nothing_of_it_back() -> None:
    share = planned(40_000, 625, num_replicas=8)
    assert (share.units, share.next_units, share.rows, share.spare_rows) == (8, 0, 5000, 0)
    assert planned(40_000, 625, num_replicas=8, pool="1..8").next_units == 1  # else it never grows
    many = planned(40_000, 625, num_replicas=2)
    assert (many.next_units, many.rows, many.spare_rows) == (
        1,
        8750 - 512,
        512,
    )  # the window is less than its share: others follow
    few = planned(600, 32, num_replicas=2)
    assert few.units == planned(600, 32, num_replicas=2, order=Order.input).units  # what its slots need


@pytest.mark.parametrize(("late_s", "least"), [(0.0, 1.88), (4.0, 1.78)])
def test_two_replicas_are_almost_twice_as_fast_as_one(late_s: float, least: float) -> None:
    drawn = random.Random(1)
    rows = [(245, min(1024, max(1, round(drawn.lognormvariate(4.6, 0.9))))) for _ in range(3000)]
    one = job_s(rows, 188, planned(3000, 188, max_num_seqs=128), [0.0])
    two = job_s(rows, 94, planned(3000, 94, num_replicas=2, max_num_seqs=128), [0.0, late_s])
    # 1.0 where they hold a quarter of it: the last units' long answers come late. 1.74 where one has a unit too many
    assert one / (two - late_s / 2) > least


@pytest.mark.parametrize("unit_rows", [1, 31, 500, 20_000])
@pytest.mark.parametrize("replicas", [1, 2, 8])
def test_slots_are_always_filled(unit_rows: int, replicas: int) -> None:
    way = planned(20_000, unit_rows, num_replicas=replicas)
    assert 1 <= way.units <= MAX_UNITS
    assert way.units * unit_rows >= 512 or way.units == MAX_UNITS
