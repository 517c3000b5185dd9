"""Past Ray Serve's queue: what needs no engine, since who asks how full a replica is was told once it no longer was;
and in a replica that has a queue of its own what needs one, since what Ray Serve does beside costs a millisecond.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable

from serve.middleware.answer import ASGIApp, Message, Receive, Scope, Send
from serve.middleware.routes import EXPOSED, MODELS
from serve.router.past import Running, call

ASK_S = 3.0
"""Seconds that a replica may take to answer; then the request goes the way of all others."""
MAX_ASKED = 64
"""Requests past the queue at a time: it bounds those of all others, and more of these wait there too."""
_NAMED = ("type", "asgi", "http_version", "scheme", "method", "path", "raw_path", "query_string", "headers")
_log = logging.getLogger(__name__)


class Past:
    """Pure ASGI, directly around Ray Serve's app: in a replica's process, or in that of Ray Serve's proxy."""

    def __init__(
        self,
        app: ASGIApp,
        own: Callable[[bool], ASGIApp | None] = lambda has_room: None,
        ask: Callable[[Scope], Awaitable[list[Message]]] | None = None,
    ) -> None:
        """Args.

        app: Ray Serve's, which has requests wait.
        own: the app of the replica whose process this is, where asked for in its `Room`; null where there is none that
            can be called.
        ask: gives a replica's answer; nothing where none gives one.
        """
        self.app, self._own, self._ask = app, own, ask

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        needs_engine = scope["method"] == "POST" and scope["path"] in EXPOSED
        if not (needs_engine or _needs_no_engine(scope)):
            await self.app(scope, receive, send)
        elif (own := self._own(needs_engine)) is not None:
            await own(scope, receive, send)
        elif needs_engine or self._ask is None or not (said := await self._ask(scope)):
            await self.app(scope, receive, send)
        else:
            for message in said:
                await send(message)


def _needs_no_engine(scope: Scope) -> bool:
    is_read = scope["path"] in EXPOSED or scope["path"].startswith(f"{MODELS}/")
    return is_read and scope["method"] in ("GET", "HEAD")


class Asker:
    """In the process of Ray Serve's proxy: asks a replica past the queue. For one event loop."""

    def __init__(self, service: str) -> None:
        """Args: the service's name, which its first model's application has too."""
        self._service, self._running, self._num_asked = service, Running(), 0

    async def __call__(self, scope: Scope) -> list[Message]:
        """Returns a replica's answer to a request without a body; nothing where none gives one in time."""
        if self._num_asked == MAX_ASKED:
            return []
        self._num_asked += 1
        try:
            if not await self._running.are_reached(self._service):
                return []
            actors = await self._running.actors(self._service)
            if not actors:
                return []
            asked = {name: scope[name] for name in _NAMED if name in scope}
            return await asyncio.wait_for(call(random.choice([*actors.values()]), "answer", asked), ASK_S)
        except Exception as error:  # it has just gone, or hangs
            _log.warning("a replica did not answer past the queue: %s", type(error).__name__)
            return []
        finally:
            self._num_asked -= 1


async def answer_of(app: ASGIApp, scope: Scope) -> list[Message]:
    """Returns the whole answer of an app to a request without a body."""
    said: list[Message] = []
    is_read = False

    async def receive() -> Message:
        nonlocal is_read
        if is_read:  # a client that leaves is of no interest
            await asyncio.Event().wait()
        is_read = True
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        said.append(message)

    await app({**scope, "root_path": "", "client": None, "server": None, "state": {}}, receive, send)
    return said
