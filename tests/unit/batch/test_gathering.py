"""What comes first waits for what comes with it, and never so that an engine has nothing to do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
import uvloop
from test_turns import ORDERING, Gate, Unit, settle

from pipelines.batch import gathering, turns
from pipelines.batch.gathering import PATIENCE_S, Gathering
from pipelines.batch.order import Window
from pipelines.batch.turns import Turns


def test_room_is_bounded_until_all_units_have_come():
    found = Gathering(2, 100)
    found.came(0.0)
    assert found.has_room(99, 0.5)
    assert not found.has_room(100, 0.5)
    found.came(0.6)
    assert found.has_room(100, 0.6)
    assert found.is_over


def test_a_unit_that_does_not_come_is_not_waited_for():
    found = Gathering(9, 100)
    found.came(1.0)
    assert not found.has_room(100, 1.0 + 0.9 * PATIENCE_S)
    found.came(1.9)
    assert not found.has_room(100, 1.0 + 1.5 * PATIENCE_S)
    assert found.has_room(100, 1.9 + PATIENCE_S)
    assert found.has_room(1 << 40, 0.0)  # it stays over


def test_what_comes_after_all_have_come_is_not_bounded_again():
    found = Gathering(9, 100)
    found.came(0.0)
    found.came(5.0)  # nothing was asked in between
    assert found.is_over


def test_without_an_order_nothing_waits():
    assert Gathering(9, None).is_over


async def test_rows_that_come_first_wait_for_those_that_belong_between_them():
    gate = Gate(9)
    found = Turns(gate, Window(ORDERING), Gathering(2, 2), lambda: None)  # type: ignore[arg-type]
    first = Unit(found, "aceg")  # each of one token
    await settle()
    assert gate.asked == ["a", "c"]
    await gate.end("a")
    assert gate.asked == ["a", "c", "e"]  # the engine always has its share
    second = Unit(found, "bdfh")
    await settle()
    assert gate.asked[3:] == ["f", "g", "h", "b", "d"]  # on from where the sweep was, then round
    await gate.end(*"cefghbd")
    await asyncio.gather(first.task, second.task)


@pytest.mark.parametrize("make_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_an_engine_that_answers_nothing_gets_the_rest_all_the_same(
    make_loop: Callable[[], asyncio.AbstractEventLoop], monkeypatch: pytest.MonkeyPatch
):
    """In uvloop too, which is Ray's: its timers may go off before their time."""
    for module in (gathering, turns):
        monkeypatch.setattr(module, "PATIENCE_S", 0.0205)  # no whole milliseconds

    async def run() -> None:
        gate = Gate(9)
        unit = Unit(Turns(gate, Window(ORDERING), Gathering(2, 2), lambda: None), "abcd")  # type: ignore[arg-type]
        await settle()
        assert gate.asked == ["a", "b"]
        await asyncio.sleep(0.15)
        assert gate.asked == ["a", "b", "c", "d"]
        await gate.end(*"abcd")
        await unit.task

    async def run_often() -> None:
        await asyncio.gather(*(run() for _ in range(30)))

    loop = make_loop()
    try:
        loop.run_until_complete(run_often())
    finally:
        loop.close()


async def test_a_row_longer_than_the_bound_does_not_stop_all():
    gate = Gate(9)
    unit = Unit(Turns(gate, Window(ORDERING), Gathering(2, 1), lambda: None), "abc")  # type: ignore[arg-type]
    for name in "abc":
        await settle()
        assert gate.asked[-1] == name
        await gate.end(name)
    await unit.task
