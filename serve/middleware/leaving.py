"""A replica that leaves: what it still answers when its time to drain is over is ended, not cut."""

from __future__ import annotations

import asyncio

from serve.middleware.answer import ASGIApp, Receive, Scope, Send

OVER = "over"
"""In scope["manta"]: a future that is done when the time to drain is over."""


class Leaving:
    """Lets `Deadline`, further inside, know when a replica that leaves has no more time."""

    def __init__(self, app: ASGIApp, drain_s: float) -> None:
        """Args: the next one; seconds that requests in flight may take once the replica leaves."""
        self._app, self._drain_s = app, drain_s
        self._over: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] == "http":
            if self._over is None:
                self._over = asyncio.get_running_loop().create_future()
            scope.setdefault("manta", {})[OVER] = self._over
        await self._app(scope, receive, send)

    def set_leaving(self, is_leaving: bool) -> None:
        """Says whether the replica is leaving; to be called in its loop. To say the same again changes nothing."""
        if is_leaving and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._drain_s, self._end)
        elif not is_leaving and self._timer is not None:  # who told of it had lost sight of the replica
            self._timer.cancel()
            self._timer = None
            if self._over is not None and self._over.done():
                self._over = None

    def _end(self) -> None:
        if self._over is None:
            self._over = asyncio.get_running_loop().create_future()
        self._over.set_result(None)
