"""The way of rows into a replica's engine: those of all units through one stream, in the window's order."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pipelines.batch.gathering import PATIENCE_S, Gathering
from pipelines.batch.order import TOKEN_BYTES, Feed, Waiting, Window
from serve.engine.protocol import Engine, Outcome, Request

LATE_S = 0.05
"""After somebody's patience has ended: uvloop's timers, which are Ray's, go off up to a millisecond early."""


class Turns:
    """Gives an engine the rows of units as their turn comes, and each unit what came of its own.

    All of it runs in the engine's event loop.
    """

    def __init__(
        self, engine: Engine, window: Window[Asker], gathering: Gathering, on_answer: Callable[[], None]
    ) -> None:
        """Args: what answers, what says whose turn it is and how many may go in, and what each outcome calls."""
        self._engine, self._window, self._gathering, self._on_answer = engine, window, gathering, on_answer
        self._askers: set[Asker] = set()
        self._of: dict[str, tuple[Asker, int]] = {}
        """Whose the requests are that the engine holds, and their tokens, by their ids."""
        self._tokens = 0
        """Of the requests that it holds."""
        self._pumps: set[asyncio.Task[None]] = set()
        self._feeding: object = None
        """What takes from the window now; null where nobody does."""
        self._is_stopping = False

    async def ask(
        self, feed: Feed, is_alone: bool, on_outcome: Callable[[Outcome], None], on_tick: Callable[[], None]
    ) -> None:
        """Runs requests to their end, or until `stop`; see `unit_run.Asking`.

        Raises:
            EngineDead: when the engine can answer nothing any more.
            OSError: what on_tick raised, of these requests or of others that shared the stream.
        """
        if self._is_stopping or not feed.waiting:
            return
        asker = Asker(feed, on_outcome, Tick(asyncio.get_running_loop(), on_tick), len(feed.waiting))
        self._askers.add(asker)
        if is_alone:
            # not through the window: nothing may be beside these, and their order is their own
            self._start(iter([(asker, waiting) for waiting in feed.waiting]), is_alone=True)
        else:
            self._window.add(asker, feed.waiting)
            self._gathering.came(time.monotonic())
            self._go_on()
            if not self._gathering.is_over:
                asyncio.get_running_loop().call_later(PATIENCE_S + LATE_S, self._go_on)
        try:
            await asker.ended
        finally:
            asker.tick.now()

    def stop(self) -> None:
        """Aborts what runs, forgets what waits, and ends all that ask."""
        self._is_stopping = True
        self._window.clear()
        for pump in self._pumps:
            pump.cancel()
        if not self._pumps:
            self._end(None)

    def _go_on(self) -> None:
        """Takes from the window again where nobody does."""
        if self._feeding is None and len(self._window) and self._has_room():
            self._start(iter(self._take, None), is_alone=False)

    def _take(self) -> tuple[Asker, Waiting] | None:
        return self._window.take() if self._has_room() else None

    def _has_room(self) -> bool:
        return self._gathering.has_room(self._tokens, time.monotonic())

    def _start(self, turns: Iterator[tuple[Asker, Waiting]], is_alone: bool) -> None:
        if not is_alone:
            self._feeding = turns
        pump = asyncio.get_running_loop().create_task(self._pump(turns, is_alone))
        self._pumps.add(pump)
        pump.add_done_callback(self._ended)

    def _ended(self, pump: asyncio.Task[None]) -> None:
        self._pumps.discard(pump)
        if not pump.cancelled() and (error := pump.exception()) is not None:
            self._fail(error)
        elif self._is_stopping and not self._pumps:
            self._end(None)

    def _fail(self, error: BaseException) -> None:
        """Ends all: a dead engine and a disk that is full are everybody's."""
        self._window.clear()
        self._feeding = None
        for pump in self._pumps:
            pump.cancel()
        self._end(error)

    def _end(self, error: BaseException | None) -> None:
        for asker in tuple(self._askers):
            self._askers.discard(asker)
            asker.end(error)
        self._of.clear()
        self._tokens = 0

    async def _pump(self, turns: Iterator[tuple[Asker, Waiting]], is_alone: bool) -> None:
        stream = self._engine.generate(self._each(turns), exclusive=is_alone)
        try:
            async for outcome in stream:
                held = self._of.pop(outcome.request_id, None)
                if held is None:  # its unit has ended with an error
                    continue
                asker, tokens = held
                self._tokens -= tokens
                asker.on_outcome(outcome)
                asker.tick.soon()
                self._on_answer()
                asker.left -= 1
                if not asker.left:
                    self._askers.discard(asker)
                    asker.end(None)
                if not self._gathering.is_over:
                    self._go_on()
        finally:
            await stream.aclose()  # type: ignore[attr-defined]

    def _each(self, turns: Iterator[tuple[Asker, Waiting]]) -> Iterator[Request]:
        for asker, waiting in turns:
            request = asker.feed.begin(waiting)
            asker.tick.soon()
            self._of[waiting.id] = asker, (tokens := len(waiting.tokens) // TOKEN_BYTES)
            self._tokens += tokens
            yield request
        if self._feeding is turns:
            self._feeding = None


@dataclass(eq=False)
class Asker:
    """One call of `Turns.ask`."""

    feed: Feed
    on_outcome: Callable[[Outcome], None]
    tick: Tick
    left: int
    """Requests that have not ended."""

    def __post_init__(self) -> None:
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def end(self, error: BaseException | None) -> None:
        """Lets the call return, or raise."""
        if self.ended.done():
            return
        if error is None:
            self.ended.set_result(None)
        else:
            self.ended.set_exception(error)


class Tick:
    """Calls a function once for all that happens in a turn of an event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, function: Callable[[], None]) -> None:
        """Args: the loop, and what is called; it may raise OSError."""
        self._loop, self._function = loop, function
        self._is_due = False
        self._error: BaseException | None = None

    def soon(self) -> None:
        """Calls it at the end of this turn.

        Raises:
            OSError: what it raised before.
        """
        if self._error is not None:
            raise self._error
        if not self._is_due:
            self._is_due = True
            self._loop.call_soon(self._call)

    def now(self) -> None:
        """Calls it.

        Raises:
            OSError: what it raised, now or before.
        """
        self._call()
        if self._error is not None:
            raise self._error

    def _call(self) -> None:
        self._is_due = False
        try:
            self._function()
        except OSError as error:
            self._error = error
