"""Bounded concurrency: requests go in while there is room, outcomes come out as they end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

from serve.engine.errors import RequestRejected
from serve.engine.protocol import EngineStats, Outcome, Rejection, Request

Answer = Callable[[Request], Awaitable[Outcome]]


class InFlight:
    """Slots that all streams of one engine share. There is no batch: a free slot takes the next request."""

    def __init__(self, limit: int, stats: EngineStats) -> None:
        """Args are the number of slots and the counters to keep."""
        self._slots = asyncio.Semaphore(limit)
        self._stats = stats

    async def stream(self, requests: Iterable[Request], answer: Answer) -> AsyncIterator[Outcome]:
        """Answers every request; see `Engine.generate`.

        Args:
            requests: taken one by one, as slots become free.
            answer: makes one outcome; what it raises other than `RequestRejected` ends the stream.
        """
        ended: asyncio.Queue[Outcome | BaseException | None] = asyncio.Queue()
        tasks: set[asyncio.Task[None]] = set()

        async def run(request: Request) -> None:
            self._stats.running += 1
            try:
                outcome = await answer(request)
            except RequestRejected as error:
                outcome = Rejection(request_id=request.id, error=error.error, message=error.message)
            except Exception as error:
                ended.put_nowait(error)
                return
            finally:
                self._stats.running -= 1
                self._slots.release()
            self._stats.count(outcome)
            ended.put_nowait(outcome)

        async def feed() -> None:
            try:
                for request in requests:
                    await self._slots.acquire()
                    task = asyncio.create_task(run(request))
                    tasks.add(task)
                    task.add_done_callback(tasks.discard)
                while tasks:
                    await asyncio.wait(tuple(tasks))
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
            for task in tuple(tasks):
                task.cancel()
            await asyncio.gather(feeder, *tasks, return_exceptions=True)
