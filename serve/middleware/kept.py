"""A request's body on its way to a replica: bounded, and kept for a second attempt."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from serve.middleware.answer import Message, Receive

KEPT_BYTES = 1 << 20
"""A longer body is not kept for a second attempt; HAProxy's bound is the same or less (serve/router/proxy.py)."""


class KeptBody:
    """A request's body as it comes, and once more from its beginning."""

    def __init__(self, receive: Receive, is_wanted: Callable[[], bool]) -> None:
        """Args: what gives it, and whether a second attempt may still come."""
        self._receive, self._is_wanted = receive, is_wanted
        self._kept: list[Message] | None = []
        self._num_bytes = 0
        self._again: list[Message] = []

    async def receive(self) -> Message:
        """See ASGI."""
        if self._again:
            return self._again.pop()
        message = await self._receive()
        if self._kept is not None:
            self._num_bytes += len(message.get("body", b""))
            self._kept.append(message)
            # a client that has left wants no second attempt
            if message["type"] != "http.request" or self._num_bytes > KEPT_BYTES or not self._is_wanted():
                self._kept = None
        return message

    def rewind(self) -> bool:
        """Starts from the beginning; returns whether it can."""
        if self._kept is None or not self._is_wanted():
            return False
        self._again, self._kept = self._kept[::-1], None
        return True


def bounded(receive: Receive, max_bytes: int) -> Receive:
    """Returns a ``receive`` that stops once a body is too long, which the replica says when it has seen as much.

    Ray Serve takes a body in as fast as it comes, into memory, for as long as the request waits for a replica.
    """
    size = 0

    async def read() -> Message:
        nonlocal size
        if size > max_bytes:
            await asyncio.Event().wait()  # only Ray Serve asks on, and cancels this with the request
        message = await receive()
        size += len(message.get("body", b""))
        return message

    return read
