"""How many requests a replica takes at a time, and how many may wait for a place."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from serve.middleware.answer import ASGIApp, Receive, Refused, Scope, Send, refuse_with

FULL = Refused(
    503, "The service has no room for more requests now.", "service_unavailable", "overloaded", [("retry-after", "1")]
)


class Room:
    """Has requests wait in the order in which they came, as Ray Serve does in front of a replica, with less around it.

    For one event loop. A client that leaves while it waits keeps its turn: what it asked for hears that it has left.
    """

    def __init__(self, app: ASGIApp, num_places: int, max_waiting: int) -> None:
        """Args: the next one; requests at a time; those that may wait, one more is 503."""
        self._app, self._max_waiting = app, max_waiting
        self._places, self._num_waiting = asyncio.Semaphore(num_places), 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if self._places.locked() and self._num_waiting >= self._max_waiting:
            await refuse_with(send, FULL)
            return
        self._num_waiting += 1
        try:
            await self._places.acquire()  # at once where there is a place
        finally:
            self._num_waiting -= 1
        try:
            with suppress(Exception):  # `Observe` has noted it, and `Proxy` ends an answer that has begun
                await self._app(scope, receive, send)
        finally:
            self._places.release()
