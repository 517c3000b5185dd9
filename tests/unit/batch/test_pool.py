"""How many replicas a job gets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conf.errors import UserError
from conf.schema.engine import Device, EngineSpec
from pipelines.batch.pool import PoolSize, pool_size
from serve.engine.placement import place


def size(replicas: str, units: int = 100, unit_rows: int = 1000, **resources: float) -> PoolSize:
    engine = EngineSpec(num_replicas=replicas, max_num_seqs=250)
    have = {"CPU": 100.0, "GPU": 100.0} | resources
    return pool_size(engine, place(engine, Device.cuda), units, units * unit_rows, have)


def test_a_number_stays_whatever_the_work() -> None:
    assert size("3", units=1) == PoolSize(fewest=3, first=3, most=3)
    assert size("3", GPU=1) == PoolSize(fewest=3, first=3, most=3)


def test_a_pool_is_as_large_as_its_rows_are_worth() -> None:
    # a replica of 250 slots is worth its start for 1,000 rows
    assert size("1..8", units=3) == PoolSize(fewest=1, first=3, most=3)
    assert size("1..8", units=100) == PoolSize(fewest=1, first=8, most=8)
    assert size("2..8", units=1) == PoolSize(fewest=2, first=2, most=2)


def test_no_replica_is_without_a_unit() -> None:
    assert size("1..8", units=2, unit_rows=100_000).most == 2


def test_what_the_cluster_does_not_hold_yet_may_come_later() -> None:
    assert size("1..8", GPU=2) == PoolSize(fewest=1, first=2, most=8)
    assert size("1..8", CPU=5) == PoolSize(fewest=1, first=4, most=8)  # a core is the reader's


@given(st.integers(1, 9), st.integers(0, 9), st.integers(1, 50), st.integers(1, 5000), st.integers(0, 20))
def test_sizes_are_in_order_and_within_what_was_allowed(
    low: int, more: int, units: int, unit_rows: int, gpus: int
) -> None:
    found = size(f"{low}..{low + more}", units, unit_rows, GPU=gpus)
    assert low == found.fewest <= found.first <= found.most <= low + more


@pytest.mark.parametrize("text", ["0", "3..2", "1..", "..4", "a", "1..2..3", "0..0", "-1", ""])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"engine.num_replicas must be a number >= 1, or MIN..MAX"):
        EngineSpec(num_replicas=text)


def test_engines_that_share_a_gpu_are_told_their_cache() -> None:
    with pytest.raises(UserError, match=r"engines_per_device=2 needs engine.kv_cache_bytes"):
        EngineSpec(engines_per_device=2)
    with pytest.raises(UserError, match=r"engines on one device, not on 2"):
        EngineSpec(engines_per_device=2, tensor_parallel_size=2, kv_cache_bytes=1 << 30)
