"""Bounded concurrency: requests go in while there is room, outcomes come out as they end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager

from serve.engine.errors import EngineDead, RequestRejected
from serve.engine.protocol import EngineStats, Outcome, Rejection, Request

Answer = Callable[[Request], Awaitable[Outcome]]


class InFlight:
    """Slots that all streams of one engine share. There is no batch: a free slot takes the next request."""

    def __init__(self, limit: int, stats: EngineStats) -> None:
        """Args are the number of slots and the counters to keep."""
        self._limit = limit
        self._slots = asyncio.Semaphore(limit)
        # passed one by one, in the order of coming: who wants all slots keeps it until the engine is empty
        self._door = asyncio.Lock()
        self._stats = stats
        self._death: EngineDead | None = None

    async def stream(
        self, requests: Iterable[Request], answer: Answer, exclusive: bool = False
    ) -> AsyncIterator[Outcome]:
        """Answers every request; see `Engine.generate`.

        Args:
            requests: taken one by one, as slots become free.
            answer: makes one outcome; what it raises other than `RequestRejected` ends the stream.
            exclusive: take all slots first, and hold them until the last request has ended.

        Raises:
            EngineDead: also what another stream's request raised: a dead engine takes no request, whoever asks.
        """
        ended: asyncio.Queue[Outcome | BaseException | None] = asyncio.Queue()

        async def run(request: Request) -> None:
            self._stats.running += 1
            try:
                outcome = await answer(request)
            except RequestRejected as error:
                outcome = Rejection(request_id=request.id, error=error.error, message=error.message)
            except Exception as error:
                if isinstance(error, EngineDead):
                    self._death = error
                ended.put_nowait(error)
                return
            finally:
                self._stats.running -= 1
            self._stats.count(outcome)
            ended.put_nowait(outcome)

        async def feed() -> None:
            # the slots outlive the tasks: a cancelled feeder waits for its tasks before it gives back what it holds
            async with self._room(exclusive) as slots, asyncio.TaskGroup() as tasks:
                try:
                    self._check()  # its slots may be free because it has died: who begins now would share the blame
                    for request in requests:
                        await _take(slots, None if exclusive else self._door)
                        self._check()
                        task = tasks.create_task(run(request))
                        # not in run(): a task that is cancelled before its first step runs nothing
                        task.add_done_callback(lambda _: slots.release())
                except Exception as error:
                    ended.put_nowait(error)
            ended.put_nowait(None)

        feeder = asyncio.create_task(feed())
        try:
            while (outcome := await ended.get()) is not None:
                if isinstance(outcome, BaseException):
                    raise outcome
                yield outcome
        finally:
            feeder.cancel()
            await asyncio.gather(feeder, return_exceptions=True)

    def _check(self) -> None:
        if self._death is not None:
            raise self._death

    @asynccontextmanager
    async def _room(self, exclusive: bool) -> AsyncIterator[asyncio.Semaphore]:
        """The slots that a stream's requests go through: the shared ones, or as many of its own for all of those."""
        if not exclusive:
            yield self._slots
            return
        held = 0
        try:
            async with self._door:
                while held < self._limit:
                    await self._slots.acquire()
                    held += 1
            yield asyncio.Semaphore(self._limit)
        finally:
            for _ in range(held):
                self._slots.release()


async def _take(slots: asyncio.Semaphore, door: asyncio.Lock | None) -> None:
    if door is None:
        await slots.acquire()
        return
    async with door:
        await slots.acquire()
