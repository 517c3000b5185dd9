"""Equal requests are computed once: an answer comes from the store, or from an equal request that is being computed.

The answer's header ``x-manta-cache`` says which: ``hit`` (kept), ``shared`` (computed for another at this moment),
``miss`` (computed for this one) or ``bypass`` (not to be kept, or ``Cache-Control: no-store``). With
``cache.semantic.enabled`` it may be ``similar`` as well: see `serve.middleware.similar`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from conf.schema.cache import CacheKind, CacheSpec
from serve.cache.entry import answer, events, make_entry, renew
from serve.cache.key import ROUTES, Question, question
from serve.cache.store import MemoryStore, Store, build_store
from serve.middleware.flight import Answer, Flight
from serve.middleware.similar import SAYS, SIMILARITY, Search, Similar

_MAX_BODY_BYTES = 1 << 20
"""A longer body is passed on unread. Measured: the key of 1 MiB of text takes 6 ms of the event loop, of ids 36 ms."""

_SHARED = (b"retry-after", SAYS, SIMILARITY)
"""Headers that all get who waited for one answer."""

_Lane = tuple[str, bool]
"""A question's key, and whether a similar one's answer will do: who wants none joins none who might get it."""

_log = logging.getLogger(__name__)


class Cache:
    """Pure ASGI. Belongs around an app that reads and writes JSON, inside of what knows the API keys."""

    def __init__(self, app: ASGIApp, spec: CacheSpec, fingerprint: str, store: Store | None = None) -> None:
        """Takes what it stands between.

        Args:
            app: the engine's API.
            spec: the configuration; with ``off`` everything is passed on.
            fingerprint: what decides the service's answers: `serve.cache.key.answer_fingerprint`.
            store: another one than the configuration's.

        Raises:
            UserError: when MANTA_REDIS_URL is no URL of a Redis.
        """
        self.app = app
        self._is_on = store is not None or spec.kind is not CacheKind.off
        self._store = store or build_store(spec) or MemoryStore(spec)
        self._spec = spec
        self._fingerprint = fingerprint
        is_semantic = self._is_on and spec.semantic.enabled
        self._similar = Similar(app, spec, fingerprint, self._kept) if is_semantic else None
        self._flights: dict[_Lane, Flight] = {}
        self._running: set[asyncio.Task[None]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers, or passes on. ``scope["manta"]["cache"]`` gets what the header says."""
        is_ours = self._is_on and scope["type"] == "http" and scope["method"] == "POST" and _route(scope) in ROUTES
        if not is_ours:
            await self.app(scope, receive, send)
            return
        control = _words(scope, b"cache-control")
        if "no-store" in control:
            await self.app(scope, receive, _say("bypass", scope, send))
            return
        body, replay = await _read(receive)
        asked = None if body is None else self._question(scope, body)
        if body is None or asked is None:
            await self.app(scope, replay, _say("bypass", scope, send))
            return
        is_anew = "no-cache" in control
        is_alike = self._similar is not None and not is_anew and "exact" not in _words(scope, b"x-manta-cache-match")
        lane = (asked.key, is_alike)
        is_flying = not asked.is_stream and self._flying(lane) is not None  # a thousand at once do not ask the store
        kept = None if is_anew or is_flying else await self._kept(asked)
        if kept is not None:
            await _send(_say("hit", scope, send), 200, *kept)
        elif asked.is_stream:  # another's answer would give it no token before the last one
            app = self._search(asked, scope, body) if is_alike else None
            await (app or self.app)(scope, replay, _say("miss", scope, send))
        elif is_anew:
            await self._wait(self._start(asked, scope, body, None), "miss", asked, scope, receive, send)
        else:
            await self._fly(lane, asked, scope, body, receive, send)

    def _question(self, scope: Scope, body: bytes) -> Question | None:
        return question(
            _route(scope),
            body,
            fingerprint=self._fingerprint,
            tenant=self._tenant(scope),
            is_sampled_kept=self._spec.sampled,
        )

    def _search(self, asked: Question, scope: Scope, body: bytes) -> Search | None:
        return None if self._similar is None else self._similar.search(asked, body, self._tenant(scope))

    def _tenant(self, scope: Scope) -> str | None:
        return scope.get("manta", {}).get("key") if self._spec.per_key else None

    async def _kept(self, asked: Question) -> tuple[bytes, bytes] | None:
        """The body and its type."""
        entry = await self._store.get(asked.key)
        if entry is None:
            return None
        try:
            if asked.is_stream:
                return events(asked, entry), b"text/event-stream; charset=utf-8"
            return answer(asked.route, entry), b"application/json"
        except ValueError as error:
            _log.warning("the cache holds what is no answer (%s)", type(error).__name__)
            return None

    def _flying(self, lane: _Lane) -> Flight | None:
        flight = self._flights.get(lane)
        return None if flight is None or flight.is_given_up else flight

    async def _fly(self, lane: _Lane, asked: Question, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        flight, status = self._flying(lane), "shared"
        if flight is None:
            search = self._search(asked, scope, body) if lane[1] else None
            flight, status = self._start(asked, scope, body, search), "miss"
            self._flights[lane] = flight

            def leave(_: object) -> None:
                if self._flights.get(lane) is flight:
                    del self._flights[lane]

            flight.task.add_done_callback(leave)
        await self._wait(flight, status, asked, scope, receive, send)

    def _start(self, asked: Question, scope: Scope, body: bytes, search: Search | None) -> Flight:
        async def keep(given: Answer) -> None:
            is_own = search is None or not search.is_found
            if is_own and given.status == 200 and (entry := make_entry(asked.route, given.body)) is not None:
                await self._store.put(asked.key, entry)
                if search is not None:
                    search.remember()

        flight = Flight(search or self.app, scope, body, keep)
        self._running.add(flight.task)  # the event loop alone would not keep it alive
        flight.task.add_done_callback(self._running.discard)
        return flight

    async def _wait(
        self, flight: Flight, status: str, asked: Question, scope: Scope, receive: Receive, send: Send
    ) -> None:
        given = await flight.answer(receive)
        if given is None:  # the client is gone
            return
        say = _say(status, scope, send)
        if status == "miss":
            await say({"type": "http.response.start", "status": given.status, "headers": given.headers})
            await say({"type": "http.response.body", "body": given.body})
            return
        kept = [(name, value) for name, value in given.headers if name.lower() in _SHARED]
        kind = next((value for name, value in given.headers if name.lower() == b"content-type"), b"application/json")
        await _send(say, given.status, renew(asked.route, given.body), kind, kept)


def _route(scope: Scope) -> str:
    return scope["path"].removeprefix(scope.get("root_path", ""))


def _words(scope: Scope, header: bytes) -> set[str]:
    values = (value for name, value in scope["headers"] if name == header)
    return {word.strip().lower() for value in values for word in value.decode("latin-1").split(",")}


async def _read(receive: Receive) -> tuple[bytes | None, Receive]:
    """Reads a body, null where it is too long or its sender has left; and what gives the app all of it again."""
    messages: list[Message] = []
    num_bytes, is_whole = 0, False
    while not is_whole and num_bytes <= _MAX_BODY_BYTES:
        message = await receive()
        messages.append(message)
        if message["type"] != "http.request":
            break
        num_bytes += len(message.get("body", b""))
        is_whole = not message.get("more_body", False)

    waiting = iter(messages)

    async def replay() -> Message:
        return next(waiting, None) or await receive()

    if not is_whole or num_bytes > _MAX_BODY_BYTES:
        return None, replay
    return b"".join(message.get("body", b"") for message in messages), replay


def _say(status: str, scope: Scope, send: Send) -> Callable[[Message], Awaitable[None]]:
    """Returns a ``send`` that adds the header, where the answer has none from `Search`."""
    manta = scope.setdefault("manta", {})
    manta["cache"] = status

    def say(message: Message) -> Awaitable[None]:
        if message["type"] == "http.response.start":
            headers = list(message.get("headers", ()))
            said = next((value for name, value in headers if name == SAYS), None)
            if said is None:
                headers.append((SAYS, status.encode()))
            else:
                manta["cache"] = said.decode()
            message = {**message, "headers": headers}
        return send(message)

    return say


async def _send(send: Send, status: int, body: bytes, kind: bytes, more: Iterable[tuple[bytes, bytes]] = ()) -> None:
    headers: list[Any] = [(b"content-type", kind), (b"content-length", str(len(body)).encode()), *more]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
