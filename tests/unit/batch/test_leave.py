"""A driver that leaves a pipeline which may never end, with a pipeline that a test plays."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from pipelines.batch import quiet, watch
from pipelines.batch.cut import Cut, CutOff, cuttable
from pipelines.batch.monitor import JobState, ReplicaReport
from pipelines.batch.watch import Consumer
from serve.engine.protocol import EngineStats

QUIET_S = 0.3


class Pipeline:
    """Steps as Ray Data does, until it is told to end by what it calls at each step, or by the test."""

    def __init__(self) -> None:
        context = SimpleNamespace(custom_execution_callback_classes=[])
        cuttable(context)
        cuttable(context)
        (self._callback,) = context.custom_execution_callback_classes
        self.has_ended = threading.Event()

    def iter_batches(self, **_: Any) -> Iterator[Any]:
        callback = self._callback()
        callback.before_execution_starts(self)
        while not self.has_ended.wait(0.01):
            callback.on_execution_step(self)
        yield from ()


class Monitor:
    def __init__(self, running: int) -> None:
        self.running = running
        self.is_left = False
        self.leave = SimpleNamespace(remote=self._leave)

    def _leave(self) -> None:
        self.is_left = True

    def state(self) -> JobState:
        report = ReplicaReport(replica="r", engine=EngineStats(running=self.running))
        return JobState(replicas={"r": report})


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quiet, "QUIET_S", QUIET_S)
    monkeypatch.setattr(watch, "POLL_S", 0.02)
    monkeypatch.setattr(watch, "_ask", lambda method: method())


def test_a_pipeline_with_nothing_at_work_is_cut_off() -> None:
    consumer, monitor = Consumer(Pipeline(), lambda _: None), Monitor(running=0)
    began = time.monotonic()
    consumer.leave(monitor)
    assert QUIET_S <= time.monotonic() - began < 10
    assert monitor.is_left
    assert consumer.wait(0)
    assert isinstance(consumer.error, CutOff)


def test_what_was_found_to_be_quiet_before_is_not_waited_for_again() -> None:
    consumer, monitor = Consumer(Pipeline(), lambda _: None), Monitor(running=0)
    while not consumer.quiet.holds(monitor.state(), time.monotonic()):
        time.sleep(0.01)
    began = time.monotonic()
    consumer.leave(monitor)
    assert time.monotonic() - began < QUIET_S
    assert consumer.wait(0)


def test_rows_in_an_engine_may_end() -> None:
    pipeline = Pipeline()
    consumer, monitor = Consumer(pipeline, lambda _: None), Monitor(running=1)
    threading.Timer(3 * QUIET_S, pipeline.has_ended.set).start()
    began = time.monotonic()
    consumer.leave(monitor)
    assert time.monotonic() - began >= 2 * QUIET_S
    assert consumer.wait(0)
    assert consumer.error is None
    assert not Cut.wanted.is_set()


def test_rows_that_do_not_end_are_left_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "LEAVE_S", 3 * QUIET_S)
    consumer = Consumer(Pipeline(), lambda _: None)
    consumer.leave(Monitor(running=1))
    assert consumer.wait(0)
    assert isinstance(consumer.error, CutOff)
