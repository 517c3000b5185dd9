"""A replica whose engine is dead says nothing any more, and ends: what stands before it asks another replica."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from serve.middleware.answer import ASGIApp, Message, Receive, Scope, Send

LEAVE_S = 1.0
"""The streams that the engine has broken end with an error event; within this time they are sent."""

_log = logging.getLogger(__name__)


class Lost:
    """Holds back the errors of answers that have not begun, until the process has ended.

    The broken connection is what Ray Serve's proxy and HAProxy take for a lost replica: they forget it and give the
    request to another one. An error would be the answer; and a replica that fails fast has the shortest queue.
    """

    def __init__(self, app: ASGIApp, is_dead: Callable[[], bool], leave: Callable[[], None]) -> None:
        """Args: the next one; whether the engine is dead; what ends this process."""
        self._app, self._is_dead, self._leave = app, is_dead, leave
        self._leaving: asyncio.TimerHandle | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def held_back(message: Message) -> None:
            await self.look()
            await send(message)

        def watch(message: Message) -> Awaitable[None]:
            is_error = message["type"] == "http.response.start" and message["status"] >= 500
            return held_back(message) if is_error else send(message)

        await self.look()
        await self._app(scope, receive, watch)

    async def look(self) -> None:
        """Returns where the engine lives."""
        if self._is_dead():
            self.end()
            await asyncio.Event().wait()

    def end(self) -> None:
        """Ends the process soon."""
        if self._leaving is None:
            _log.error("the engine is dead: this replica ends")
            self._leaving = asyncio.get_running_loop().call_later(LEAVE_S, self._leave)
