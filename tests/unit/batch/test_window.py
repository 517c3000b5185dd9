"""The window of a replica's rows: each comes once and in bounded time, prefixes together, long answers in good time."""

from __future__ import annotations

import heapq
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conf.schema.sampling import SamplingSpec
from pipelines.batch.order import Ordering, Waiting, Window, tokens_as_bytes

ORDERING = Ordering(by_prefix=True, longest_first=True, num_seqs=2, units=9, next_units=1, rows=1 << 30, spare_rows=0)
QUICK = settings(deadline=None, max_examples=300, database=None, derandomize=True)


def waiting(token_ids: list[int], max_tokens: int = 8, adapter: str | None = None, name: str = "") -> Waiting:
    tokens = np.array(token_ids, ">i4").tobytes()
    return Waiting(id=name, tokens=tokens, sampling=SamplingSpec(max_tokens=max_tokens), adapter=adapter)


def drained(window: Window[Any]) -> list[Waiting]:
    return [one for _, one in iter(window.take, None)]


def ids_of(rows: list[Waiting]) -> list[list[int]]:
    return [one.request().token_ids for one in rows]


def test_tokens_compare_as_their_ids_do_and_come_back() -> None:
    column = pa.chunked_array([[[1, 2], None, [70_000]], [[], [3]]], pa.list_(pa.int32()))
    found = tokens_as_bytes(column.slice(1))
    assert found == [b"", (70_000).to_bytes(4), b"", (3).to_bytes(4)]
    assert tokens_as_bytes(column)[0] < found[3] < found[1]
    assert waiting([1, 70_000]).request().token_ids == [1, 70_000]


def test_rows_of_one_prefix_come_together_whatever_unit_they_are_in() -> None:
    window: Window[str] = Window(ORDERING)
    window.add("one", [waiting([7, 1]), waiting([5, 3]), waiting([300])])
    window.add("other", [waiting([5, 1]), waiting([7, 2]), waiting([5])])
    turns = list(iter(window.take, None))
    assert ids_of([one for _, one in turns]) == [[5], [5, 1], [5, 3], [7, 1], [7, 2], [300]]
    assert [owner for owner, _ in turns] == ["other", "other", "one", "one", "other", "one"]
    assert len(window) == 0


def test_an_adapters_rows_come_together() -> None:
    window: Window[None] = Window(ORDERING)
    window.add(None, [waiting([1], adapter="b"), waiting([2]), waiting([2], adapter="a"), waiting([1])])
    assert [(one.adapter, one.tokens[-1]) for one in drained(window)] == [(None, 1), (None, 2), ("a", 2), ("b", 1)]


def test_what_comes_ahead_of_the_cursor_joins_the_sweep_and_the_rest_the_next() -> None:
    window: Window[None] = Window(ORDERING)
    window.add(None, [waiting([n]) for n in (1, 3, 5)])
    assert [ids_of([turn[1]]) for turn in (window.take(), window.take()) if turn] == [[[1]], [[3]]]
    window.add(None, [waiting([n]) for n in (2, 4, 3)])
    assert ids_of(drained(window)) == [[3], [4], [5], [2]]


def test_without_a_prefix_cache_rows_go_as_they_come_and_long_answers_early() -> None:
    window: Window[None] = Window(replace(ORDERING, by_prefix=False))
    window.add(None, [waiting([9 - n]) for n in range(6)] + [waiting([1], max_tokens=100)])
    assert ids_of(drained(window)) == [[1], [9], [8], [7], [6], [5], [4]]
    plain: Window[None] = Window(replace(ORDERING, by_prefix=False, longest_first=False))
    plain.add(None, [waiting([9]), waiting([1], max_tokens=100), waiting([5])])
    assert ids_of(drained(plain)) == [[9], [1], [5]]


def test_a_long_answer_waits_as_long_as_enough_others_follow() -> None:
    window: Window[None] = Window(ORDERING)
    window.add(None, [waiting([n]) for n in range(100)] + [waiting([200], max_tokens=64)])
    order = [ids[0] for ids in ids_of(drained(window))]
    before_long = order.index(200)
    # 2 sequences, 8 tokens each: 64 tokens are as long as 16 of the others, twice that is the margin
    assert 60 < before_long < 100 - 16
    assert [n for n in order if n != 200] == list(range(100))


def makespan(answers: list[int], num_seqs: int) -> int:
    """Steps until so many sequences at a time have made all these answers."""
    ends = [0] * num_seqs
    for tokens in answers:
        heapq.heappush(ends, heapq.heappop(ends) + tokens)
    return max(ends)


def test_no_long_answer_holds_the_end() -> None:
    rng = random.Random(3)
    limits = [rng.choice([8, 8, 8, 16, 32, 512]) if n < 1990 else 2000 for n in range(2000)]
    best = max(max(limits), sum(limits) / 64)

    def steps(longest_first: bool) -> float:
        window: Window[None] = Window(replace(ORDERING, num_seqs=64, longest_first=longest_first))
        window.add(None, [waiting([n], max_tokens=limit) for n, limit in enumerate(limits)])
        return makespan([one.sampling.max_tokens for one in drained(window)], 64) / best

    assert steps(longest_first=True) < 1.05
    assert steps(longest_first=False) > 1.3


@QUICK
@given(data=st.data())
def test_every_request_comes_once_and_waits_for_two_sweeps_at_most(data: st.DataObject) -> None:
    """With rows held back, one more sweep may pass until they are let in."""
    ordering = replace(
        ORDERING,
        by_prefix=data.draw(st.booleans()),
        longest_first=data.draw(st.booleans()),
        rows=data.draw(st.integers(1, 30)),
        spare_rows=data.draw(st.integers(0, 10)),
    )
    window: Window[int] = Window(ordering)
    units: dict[int, list[Waiting]] = {}
    got: list[tuple[int, str]] = []
    sweeps, last = 0, b""
    since: dict[str, int] = {}

    def take() -> bool:
        nonlocal sweeps, last
        turn = window.take()
        if turn is None:
            return False
        got.append((turn[0], turn[1].id))
        if turn[1].sampling.max_tokens == 8 and ordering.by_prefix:  # long ones may be out of turn
            sweeps += turn[1].tokens < last
            last = turn[1].tokens
        assert sweeps - since[turn[1].id] <= 3
        return True

    for _ in range(data.draw(st.integers(1, 12))):
        if data.draw(st.booleans()):
            unit = len(units)
            rows = data.draw(st.lists(st.tuples(st.integers(0, 9), st.sampled_from([8, 8, 8, 100])), max_size=12))
            units[unit] = [waiting([n], limit, name=f"{unit}-{i}") for i, (n, limit) in enumerate(rows)]
            since |= {one.id: sweeps for one in units[unit]}
            window.add(unit, units[unit])
        for _ in range(data.draw(st.integers(0, 15))):
            take()
        assert len(window) == len(since) - len(got)
    while take():
        pass
    assert sorted(got) == sorted((unit, one.id) for unit, rows in units.items() for one in rows)


def test_a_row_of_a_window_that_never_runs_dry_gets_its_turn() -> None:
    """New units come whenever old ones end, and all of theirs lie ahead of the cursor, or are longer."""
    window: Window[None] = Window(replace(ORDERING, rows=16, spare_rows=4))
    window.add(None, [waiting([5], name="the one"), *(waiting([n]) for n in range(10))])
    for taken in range(200):
        turn = window.take()
        assert turn is not None
        if turn[1].id == "the one":
            return
        window.add(None, [waiting([6 + taken], max_tokens=64)])
    pytest.fail("it starves")


def test_rows_are_held_back_until_the_others_run_low() -> None:
    """Units whose rows go in one sweep end together: then these keep the engine busy until others come."""
    window: Window[None] = Window(replace(ORDERING, rows=6, spare_rows=2))
    for unit in range(4):
        window.add(None, [waiting([10 * n + unit]) for n in range(3)])
    order = [ids[0] for ids in ids_of(drained(window))]
    assert order[:7] == [0, 1, 2, 10, 11, 12, 20]
    assert sorted(order) == sorted(10 * n + unit for n in range(3) for unit in range(4))
