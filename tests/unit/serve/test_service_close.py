from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

import serve.service
from conf import entry
from serve.deployment import CLOSE_S
from serve.plan import make_plan
from serve.service import LEAVE_S, POLL_S, Service

DRAIN_S = 20.0


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


class Closing(Service):
    """Replicas as a clock would have them: those that hold requests end then, or when they are killed."""

    def __init__(self, clock: Clock, queue_s: float, held_s: float) -> None:
        words = ("model=demo", "access.open=true", "deployment.proxy=plain", f"deployment.drain_s={DRAIN_S:g}")
        plan = make_plan(entry.compose("serve", *words), is_update=True)
        super().__init__(plan, threading.Event(), print)
        self._is_open = True
        self._clock, self._queue_s = clock, queue_s
        self._end_s = clock.now_s + held_s
        self.deployed = 0
        self.killed_s: float | None = None

    def _run(self, make: Callable[[], Any]) -> None:
        self.deployed += 1

    def _wait_for_queue(self, deadline: float) -> None:
        self._clock.now_s = min(self._clock.now_s + self._queue_s, deadline)

    def _actors(self) -> list[str]:
        return [] if self.killed_s is not None or self._clock.now_s >= self._end_s else ["a"]

    def _kill(self) -> None:
        self.killed_s = self._clock.now_s


@pytest.mark.parametrize(
    "queue_s,held_s,took_s,is_cut",
    [
        (0.0, 0.0, 0.0, False),
        (5.0, 12.0, 12.0, False),
        (60.0, 15.0, DRAIN_S, False),  # requests that wait for a replica take the time of those that have one
        (60.0, 60.0, DRAIN_S + CLOSE_S, True),
        (0.0, 60.0, DRAIN_S + CLOSE_S, True),
    ],
)
def test_it_closes_within_the_time_to_drain(
    monkeypatch: pytest.MonkeyPatch, queue_s: float, held_s: float, took_s: float, is_cut: bool
):
    clock = Clock()
    monkeypatch.setattr(serve.service, "time", clock)
    monkeypatch.setattr(serve.service, "forget_notices", lambda name: None)
    service = Closing(clock, queue_s, held_s)
    began_s = clock.now_s
    service.close()
    assert service.deployed == 2
    assert (service.killed_s is not None) == is_cut
    assert clock.now_s - began_s == pytest.approx(took_s, abs=POLL_S)
    assert took_s <= DRAIN_S + LEAVE_S
