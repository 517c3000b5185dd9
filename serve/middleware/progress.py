"""Tells the router when a request comes, when its answer begins and when it ends."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable
from itertools import count

from serve.middleware.answer import ASGIApp, Message, Receive, Scope, Send
from serve.router.flights import Event, Moment
from serve.router.ingress import FLIGHT_HEADER, Reporter

_HEADER = FLIGHT_HEADER.encode()


class Progress:
    """Notes each POST. One that no router sent has a name that none gave: routers count it all the same."""

    def __init__(self, app: ASGIApp, bytes_per_token: float, note: Callable[[Event], None] | None = None) -> None:
        """Args.

        app: the next one.
        bytes_per_token: of a prompt that only its body's length is known of.
        note: takes the events; null tells the service's routers.
        """
        self._app = app
        self._bytes_per_token = bytes_per_token
        self._note = note or Reporter().note
        self._number = count()
        self._prefix = uuid.uuid4().hex[:8]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        flight = headers.get(_HEADER, b"").decode("latin-1") or f"{self._prefix}.{next(self._number)}"
        size = headers.get(b"content-length", b"")
        has_begun = False

        def watch(message: Message) -> Awaitable[None]:
            nonlocal has_begun
            if not has_begun and message["type"] == "http.response.body" and message.get("body"):
                has_begun = True
                if message.get("more_body", False):  # else the end follows at once
                    self._note(Event(Moment.first_token, flight))
            return send(message)

        tokens = round(int(size) / self._bytes_per_token) if size.isdigit() else 1
        self._note(Event(Moment.began, flight, tokens))
        try:
            await self._app(scope, receive, watch)
        finally:
            self._note(Event(Moment.ended, flight))
