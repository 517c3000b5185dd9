"""Until when an answer is of use; and whoever asked for it no longer waits, the engine stops computing."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Awaitable

from serve.middleware.answer import ASGIApp, Message, Receive, Refused, Scope, Send, error_event, nothing, refuse_with
from serve.middleware.header import Headers, media_type
from serve.middleware.leaving import OVER

TIMEOUT = b"x-request-timeout"
GRACE_S = 2.0
"""Seconds that what is inside may take to end by itself, once its client seems gone, before it is cancelled."""
_SECONDS = re.compile(rb"[0-9]{1,9}(\.[0-9]{1,9})?")
_MESSAGE = "The answer was not complete within {:g} s."
_LEFT = "The service had to stop before the answer was complete."
_GONE: Message = {"type": "http.disconnect"}


class Deadline:
    """Ends what takes too long: with 504 before the answer's first byte, with an error event in a stream.

    Where the replica leaves and may take no longer (`Leaving`) it is a 503, for which another replica is asked.

    What is inside then learns that its client is gone, and so it does when this call is cancelled, as Ray Serve does
    when a client leaves: vLLM's handlers hear a disconnect, but go on computing when they are cancelled.
    """

    def __init__(self, app: ASGIApp, timeout_s: float) -> None:
        """Wraps ``app``.

        Args:
            app: what stands inside.
            timeout_s: for requests that name none; a longer one is cut to it.
        """
        self.app, self._timeout_s = app, timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            timeout_s = min(asked_timeout_s(scope["headers"]) or self._timeout_s, self._timeout_s)
        except Refused as refused:
            await refuse_with(send, refused)
            return
        line = _Line(receive, send)
        task = asyncio.create_task(self.app(scope, line.receive, line.send))  # type: ignore[arg-type]
        manta = scope.get("manta", {})
        over: asyncio.Future[None] | None = manta.get(OVER)
        try:
            waited = (task,) if over is None else (task, over)
            await asyncio.wait(waited, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                task.result()
                return
            # what is sent from here on is not for the client
            line.hang_up()
            if over is not None and over.done():
                refused = Refused(503, _LEFT, "service_unavailable", "replica_leaving", [("retry-after", "1")])
            else:
                # a client that tried again by itself would wait as long as it had no time for
                again, said = [("x-should-retry", "false")], _MESSAGE.format(timeout_s)
                refused = Refused(504, said, "timeout_error", "deadline_exceeded", again)
            manta["cause"] = refused.code
            await line.end(refused)
        finally:
            line.hang_up()
            await _ended(task)


def asked_timeout_s(headers: Headers) -> float | None:
    """Returns the seconds that a request gives itself; null where it says nothing.

    Raises:
        Refused: 400 where it is no number of seconds above 0.
    """
    values = [value for name, value in headers if name == TIMEOUT]
    if not values:
        return None
    seconds = float(values[0]) if len(values) == 1 and _SECONDS.fullmatch(values[0]) else math.nan
    if not seconds > 0:
        raise Refused(400, "The header x-request-timeout must be a number of seconds above 0.", code="invalid_header")
    return seconds


async def _ended(task: asyncio.Task[None]) -> None:
    """Waits until a task has ended, cancelled where it does not end by itself."""
    if not task.done():
        try:
            await asyncio.wait((task,), timeout=GRACE_S)
        finally:
            task.cancel()
    if task.done() and not task.cancelled():
        task.exception()  # it has been heard: an app whose client is gone may say what it likes


class _Line:
    """Between an app and its client, until it is hung up."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive, self._send = receive, send
        self._is_cut = asyncio.Event()
        self._is_read = self._is_begun = self._is_ended = self._is_stream = self._is_within = False

    def hang_up(self) -> None:
        """From here on the app is told that its client is gone."""
        self._is_cut.set()

    async def receive(self) -> Message:
        """The app's ``receive``."""
        if self._is_cut.is_set():
            return _GONE
        if not self._is_read:
            message = await self._receive()
            self._is_read = message["type"] != "http.request" or not message.get("more_body", False)
            return self._heard(message)
        # what comes after the body is the client's leaving, which may be in an hour
        heard, cut = asyncio.ensure_future(self._receive()), asyncio.ensure_future(self._is_cut.wait())
        try:
            await asyncio.wait((heard, cut), return_when=asyncio.FIRST_COMPLETED)
            return self._heard(heard.result()) if heard.done() else _GONE
        finally:
            heard.cancel()
            cut.cancel()

    def _heard(self, message: Message) -> Message:
        if message["type"] == _GONE["type"]:  # what the app still says is no answer that anybody got
            self.hang_up()
        return message

    def send(self, message: Message) -> Awaitable[None]:
        """The app's ``send``."""
        if self._is_cut.is_set():
            return nothing()
        if message["type"] == "http.response.start":
            self._is_begun = True
            self._is_stream = media_type(message.get("headers", ())) == "text/event-stream"
        elif message["type"] == "http.response.body":
            self._is_ended = not message.get("more_body", False)
            if self._is_stream and (body := message.get("body")):
                self._is_within = not body.endswith(b"\n\n")
        return self._send(message)

    async def end(self, refused: Refused) -> None:
        """Ends the answer in the app's place."""
        if not self._is_begun:
            await refuse_with(self._send, refused)
        elif self._is_stream and not self._is_ended:
            event = error_event(refused.message, refused.kind, refused.code or "")
            await self._send({"type": "http.response.body", "body": b"\n\n" * self._is_within + event})
        elif not self._is_ended:
            raise TimeoutError(refused.message)  # a body without its end: the connection is closed
