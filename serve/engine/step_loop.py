"""Drives a stepping engine from a thread of its own and hands its outcomes to an event loop.

One thread loads the model and takes every step: OpenMP keeps a team of threads for each thread that enters a parallel
region, and a second one would bind the same cores again.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Protocol

from serve.engine.errors import EngineDead, RequestRejected
from serve.engine.protocol import Outcome, Request


class Stepper(Protocol):
    """An engine that advances all its requests by one step when told to."""

    def add(self, request: Request) -> None:
        """Takes a request.

        Raises:
            RequestRejected: when it can never be answered.
        """
        ...

    def abort(self, request: Request) -> None:
        """Forgets a request; harmless when it has ended."""
        ...

    def step(self) -> list[Outcome]:
        """Advances every request by a step and returns those that ended."""
        ...

    def has_work(self) -> bool:
        """Whether a step would do anything."""
        ...

    def close(self) -> None:
        """Frees the device."""
        ...


class StepLoop:
    """A thread with a stepper."""

    def __init__(self, start: Callable[[], Stepper]) -> None:
        """``start`` builds the stepper, in the thread."""
        self._start = start
        self._inbox: queue.SimpleQueue[tuple[str, Request | None]] = queue.SimpleQueue()
        self._waiting: dict[str, asyncio.Future[Outcome]] = {}
        self._death: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="engine-steps", daemon=True)

    async def start(self) -> None:
        """Starts the thread and returns once the stepper is built.

        Raises:
            Exception: what building it raised.
        """
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._thread.start()
        await self._ready

    async def answer(self, request: Request) -> Outcome:
        """Submits a request and waits for its outcome.

        Raises:
            RequestRejected: when it can never be answered.
            EngineDead: when the thread has ended.
        """
        self.check()
        future: asyncio.Future[Outcome] = self._loop.create_future()
        self._waiting[request.id] = future
        self._inbox.put(("add", request))
        try:
            return await future
        except asyncio.CancelledError:
            self._inbox.put(("abort", request))
            raise
        finally:
            self._waiting.pop(request.id, None)

    def check(self) -> None:
        """Returns while the thread lives.

        Raises:
            EngineDead: when it does not.
        """
        if self._death is not None:
            raise EngineDead(f"the engine's loop ended: {self._death!r}") from self._death

    async def close(self) -> None:
        """Ends the thread and frees the device."""
        if self._thread.is_alive():
            self._inbox.put(("close", None))
            await asyncio.to_thread(self._thread.join, 30)

    def _run(self) -> None:
        try:
            stepper = self._start()
        except BaseException as error:
            self._post(_settle, self._ready, error)
            return
        self._post(_settle, self._ready, None)
        try:
            while self._take(stepper):
                outcomes = stepper.step()
                if outcomes:
                    self._post(self._deliver, outcomes)
            self._death = EngineDead("closed")
        except BaseException as error:
            self._death = error
        finally:
            self._post(self._fail_waiting)
            stepper.close()

    def _take(self, stepper: Stepper) -> bool:
        """Carries out what lies in the inbox; waits for something where there is no work. False is the end."""
        while True:
            try:
                command, request = self._inbox.get(block=not stepper.has_work())
            except queue.Empty:
                return True
            if command == "close" or request is None:
                return False
            if command == "abort":
                stepper.abort(request)
                continue
            try:
                stepper.add(request)
            except RequestRejected as error:
                self._post(self._reject, request.id, error)

    def _post(self, function: Callable[..., None], *args: object) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:  # the event loop has closed: nobody waits any more
            self._death = self._death or EngineDead("the event loop closed")

    def _deliver(self, outcomes: list[Outcome]) -> None:
        for outcome in outcomes:
            future = self._waiting.get(outcome.request_id)
            if future is not None and not future.done():
                future.set_result(outcome)

    def _reject(self, request_id: str, error: RequestRejected) -> None:
        future = self._waiting.get(request_id)
        if future is not None and not future.done():
            future.set_exception(error)

    def _fail_waiting(self) -> None:
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(EngineDead(f"the engine's loop ended: {self._death!r}"))


def _settle(future: asyncio.Future[None], error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error if isinstance(error, Exception) else EngineDead(repr(error)))
