"""The outermost layer of a replica: names each request, sees how it went, and says so."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import msgspec

from serve.middleware.answer import ASGIApp, Message, Receive, Scope, Send, refuse
from serve.middleware.header import media_type
from serve.middleware.identity import REQUEST_ID, identify
from serve.middleware.proxy import AGAIN_HEADER
from serve.middleware.record import Record, RequestLog
from serve.middleware.tally import Tally
from serve.middleware.usage import Usage

_MAX_ERROR_BYTES = 64 << 10
_QUIET = frozenset({"/health", "/ready", "/metrics"})
"""Asked by machines every few seconds: counted, but not logged where all is well."""

_log = logging.getLogger(__name__)


class _Error(msgspec.Struct):
    type: str | None = None
    code: str | int | None = None


class _Refusal(msgspec.Struct):
    error: _Error


_decoder = msgspec.json.Decoder(_Refusal)


class Observe:
    """Every answer has ``x-request-id``, every request a record; scope["manta"] gets ``request_id`` and ``trace_id``.

    An exception of what is inside becomes a 500 in OpenAI's shape that tells nothing of it.
    """

    def __init__(
        self, app: ASGIApp, tally: Tally, log: RequestLog | None = None, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        """Wraps ``app``.

        Args:
            app: what stands inside.
            tally: where requests are counted.
            log: where they are written down; null is nowhere.
            clock: seconds.
        """
        self.app, self._tally, self._request_log, self._clock = app, tally, log, clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers, request_id, trace_id = identify(scope["headers"])
        manta: dict[str, Any] = {"request_id": request_id, "trace_id": trace_id}
        # shared by the copies that inner layers make: vLLM leaves there what a request used
        scope = {**scope, "headers": headers, "manta": manta, "state": dict(scope.get("state") or {})}
        watch = _Watch(send, request_id.encode(), self._clock, manta)
        self._tally.in_flight.inc()
        if any(name == AGAIN_HEADER for name, _ in headers):
            self._tally.again.inc()
        self._tally.held.add(watch)
        try:
            await self.app(scope, receive, watch.send)
        except Exception as error:
            # the answer's beginning has gone out: only a broken connection tells that its end is missing
            _log.error("request %s failed: %s", request_id, type(error).__name__)
            if watch.is_begun and not watch.is_ended:
                manta["cause"] = "internal_error"
                raise
            if not watch.is_begun:
                await refuse(watch.send, 500, "The request failed.", "server_error", "internal_error")
        finally:
            self._tally.in_flight.dec()
            self._tally.held.discard(watch)
            self._note(scope, watch)

    def _note(self, scope: Scope, watch: _Watch) -> None:
        manta, tally, now = scope["manta"], self._tally, self._clock()
        usage: Usage | None = manta.get("usage")
        body = manta.get("body")
        cause = manta.get("cause") or watch.cause()
        record = Record(
            time=datetime.fromtimestamp(time.time() - (now - watch.came_at), UTC).isoformat(timespec="milliseconds"),
            request_id=manta["request_id"],
            trace_id=manta["trace_id"],
            key=manta.get("key"),
            method=scope["method"],
            path=tally.route(scope["path"]),
            status=watch.status,
            model=tally.model(body.get("model")) if isinstance(body, dict) else None,
            stream=watch.is_stream,
            prompt_tokens=usage.prompt if usage else None,
            completion_tokens=usage.completion if usage else None,
            ttft_ms=None if watch.first_at is None else round((watch.first_at - watch.came_at) * 1000, 3),
            duration_ms=round((now - watch.came_at) * 1000, 3),
            cache=manta.get("cache"),
            cause=None if cause is None else tally.cause(cause),
        )
        tally.count(record, watch.tpot_s(usage))
        if self._request_log is not None and not (scope["path"] in _QUIET and watch.status == 200):
            self._request_log.write(record)


class _Watch:
    """Sees an answer pass."""

    def __init__(self, send: Send, request_id: bytes, clock: Callable[[], float], manta: dict[str, Any]) -> None:
        self._send, self._request_id, self._clock, self._manta = send, request_id, clock, manta
        self.came_at = clock()
        self.first_at: float | None = None
        self._last_at = self.came_at
        self.status = 499
        self.is_begun = self.is_ended = self.is_stream = False
        self._error = bytearray()

    @property
    def priority(self) -> int | None:
        """See `Held.priority`."""
        return self._manta.get("priority") if "body" in self._manta else None

    def first_wait_s(self) -> float:
        """See `Held.first_wait_s`."""
        body = self._manta.get("body")
        is_waiting = self.first_at is None and isinstance(body, dict) and body.get("stream") is True
        return self._clock() - self.came_at if is_waiting else 0.0

    def send(self, message: Message) -> Awaitable[None]:
        """Passes a message on; the first one with the request's id."""
        kind = message["type"]
        if kind == "http.response.start":
            self.is_begun, self.status = True, message["status"]
            headers = [pair for pair in message.get("headers", ()) if pair[0].lower() != REQUEST_ID]
            self.is_stream = self.status == 200 and media_type(headers) == "text/event-stream"
            message = {**message, "headers": [*headers, (REQUEST_ID, self._request_id)]}
        elif kind == "http.response.body":
            self.is_ended = not message.get("more_body", False)
            if self.is_stream and message.get("body"):
                self._last_at = self._clock()
                if self.first_at is None:
                    self.first_at = self._last_at
            if self.status >= 400 and len(self._error) < _MAX_ERROR_BYTES:
                self._error += message.get("body", b"")
        return self._send(message)

    def tpot_s(self, usage: Usage | None) -> float | None:
        """Seconds for each token after the first one; null where there is none, or where all came at once."""
        if self.first_at is None or self.first_at == self._last_at or usage is None or usage.completion < 2:
            return None
        return (self._last_at - self.first_at) / (usage.completion - 1)

    def cause(self) -> str | None:
        """Why there is no answer; null where there is one."""
        if not self.is_begun or not self.is_ended:
            return "client_left"
        if self.status < 400:
            return None
        try:
            error = _decoder.decode(self._error).error
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return f"status_{self.status}"
        name = error.code if isinstance(error.code, str) else error.type
        # vLLM's own are named like exceptions
        return "".join(f"_{c.lower()}" if c.isupper() else c for c in name or "").lstrip("_") or f"status_{self.status}"
