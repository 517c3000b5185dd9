"""One run of the app for all who ask the same at once. It goes on as long as one of them waits."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from serve.middleware.answer import ASGIApp, Message, Receive, Scope
from serve.middleware.body import left

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """A whole response."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


class Flight:
    """A request that runs in a task of its own, so that the client that began it may leave.

    When the last one has left, the app learns that its client is gone, and stops computing.
    """

    def __init__(self, app: ASGIApp, scope: Scope, body: bytes, keep: Callable[[Answer], Awaitable[None]]) -> None:
        """Starts the run.

        Args:
            app: what computes.
            scope: of the request that came first.
            body: its body, whole.
            keep: gets the answer after those who wait.
        """
        self._num_waiting = 0
        self._given: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._left = asyncio.Event()
        self.task = asyncio.create_task(self._run(app, scope, body, keep))

    @property
    def is_given_up(self) -> bool:
        """Whether all have left before there was an answer."""
        return self._left.is_set()

    async def answer(self, receive: Receive) -> Answer | None:
        """Waits for the answer; null when the client leaves before.

        A waiter's own deadline is a cancellation of this call.
        """
        self._num_waiting += 1
        watch = asyncio.create_task(left(receive))
        try:
            await asyncio.wait((watch, self._given), return_when=asyncio.FIRST_COMPLETED)
            return self._given.result() if self._given.done() else None
        finally:
            watch.cancel()
            self._num_waiting -= 1
            if self._num_waiting == 0 and not self._given.done():
                self._left.set()

    async def _run(self, app: ASGIApp, scope: Scope, body: bytes, keep: Callable[[Answer], Awaitable[None]]) -> None:
        is_read = False
        start: Message | None = None
        parts: list[bytes] = []

        async def receive() -> Message:
            nonlocal is_read
            if not is_read:
                is_read = True
                return {"type": "http.request", "body": body, "more_body": False}
            await self._left.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start":
                start = message
            elif message["type"] == "http.response.body":
                parts.append(message.get("body", b""))
                if start is not None and not message.get("more_body", False) and not self._given.done():
                    headers = [(bytes(name), bytes(value)) for name, value in start.get("headers", ())]
                    self._given.set_result(Answer(status=start["status"], headers=headers, body=b"".join(parts)))

        try:
            # a copy: what inner ones leave in it is theirs, and the first request's dict ends with its connection
            await app({**scope, "manta": dict(scope.get("manta", {}))}, receive, send)
        except Exception as error:  # those who wait get an answer, whatever happened
            _log.error("a request failed: %s", type(error).__name__)
        finally:
            if not self._given.done():
                self._given.set_result(_FAILED)
        await keep(self._given.result())


_ERROR = {"message": "the request failed", "type": "server_error", "param": None, "code": "internal_error"}
_BODY = json.dumps({"error": _ERROR}).encode()
_FAILED = Answer(
    status=500,
    headers=[(b"content-type", b"application/json"), (b"content-length", str(len(_BODY)).encode())],
    body=_BODY,
)
