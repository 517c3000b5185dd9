"""An engine in this process for tests of what stands around one, and a unit run on it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

from conf.schema.sampling import SamplingSpec
from pipelines.batch.order import Waiting
from pipelines.batch.unit_run import Found, UnitRun
from pipelines.ledger.claims import Answer, Claims
from pipelines.ledger.folder import Folder
from serve.engine.errors import EngineDead
from serve.engine.protocol import Completion, Outcome, Request, Sample

UNIT, RUN = "0123456789ab", "run1"


def entry(number: int) -> str:
    return f"{number:032x}"


def requests(*numbers: int) -> dict[str, Waiting]:
    return {entry(n): Waiting(id=f"{UNIT}-{n}", tokens=n.to_bytes(4), sampling=SamplingSpec()) for n in numbers}


def said(number: int) -> Completion:
    """What the engine says to a request."""
    sample = Sample(text=f"of {number}", finish_reason="stop", completion_tokens=1)
    return Completion(request_id=f"{UNIT}-{number}", samples=(sample,), prompt_tokens=1)


class Engine:
    """Answers in the order of coming, with so many slots; holds nothing else while a group is alone."""

    def __init__(self, poison: tuple[int, ...] = (), slots: int = 4, stop_after: int | None = None) -> None:
        self.poison, self.slots, self.stop_after = poison, slots, stop_after
        self.ran: list[int] = []
        self.groups: list[list[int]] = []
        """What ran alone."""
        self.is_stopping = self.is_dead = False
        self.door = threading.RLock()
        self.on_alone: Callable[[], Any] = lambda: None

    def ask(self, asked: Iterator[Request], is_alone: bool, on_outcome: Any, on_tick: Any) -> None:
        if not is_alone:
            return self._run(asked, [], on_outcome, on_tick)
        with self.door:
            if self.is_dead:
                raise EngineDead("segfault")
            self.groups.append([])
            return self._run(asked, self.groups[-1], on_outcome, on_tick)

    def _run(self, asked: Iterator[Request], group: list[int], on_outcome: Any, on_tick: Any) -> None:
        held: list[Request] = []
        while not self.is_stopping:
            while len(held) < self.slots and (request := next(asked, None)) is not None:
                held.append(request)
                group.append(request.token_ids[0])
                on_tick()
            if not held:
                return
            if group:
                self.on_alone()
            if any(request.token_ids[0] in self.poison for request in held):
                self.is_dead = True
                raise EngineDead("segfault")
            number = held.pop(0).token_ids[0]
            self.ran.append(number)
            on_outcome(said(number))
            on_tick()
            self.is_stopping = len(self.ran) == self.stop_after


class PlainDesk:
    """A replica's way to claims in this process."""

    def __init__(self, claims: Claims, holder: str) -> None:
        self._claims, self._holder, self._turn = claims, holder, threading.Lock()

    def claim(self, keys: list[bytes]) -> Answer:
        with self._turn:
            return self._claims.claim(self._holder, keys)

    def settle(self, outcomes: list[tuple[bytes, bytes]]) -> None:
        with self._turn:
            self._claims.settle(self._holder, list(outcomes))


def run(
    folder: Folder,
    asked: dict[str, Waiting],
    engine: Engine,
    replica: str = "a",
    desk: PlainDesk | None = None,
    former: dict[str, Outcome] | None = None,
    unit: str = UNIT,
    max_attempts: int = 4,
    says: bool = True,
    job: str = RUN,
) -> Found:
    """Answers a unit as a replica does; an engine that dies says so, or the process ends without a word."""
    one = UnitRun(folder, unit, job, replica, desk, max_attempts)
    try:
        found = one.answer(asked, former or {}, engine)
    except EngineDead as error:
        if says:
            one.log.died(str(error))
        raise
    one.log.close()
    return found
