"""Who may come in, and how often: keys, limits, the size of what is sent, whose turn it is."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime

from conf.schema.access import AccessSpec
from serve.keyring import KeyRing
from serve.keys import Key, Limits
from serve.middleware.answer import ASGIApp, Message, Receive, Refused, Scope, Send, refuse_with
from serve.middleware.body import CLOSE, FORM, JSON, Gone, admit, read_body, replay, too_large
from serve.middleware.header import media_type, read_headers, with_length
from serve.middleware.limiter import Account, Ticket, Wait
from serve.middleware.others import Others
from serve.middleware.usage import Usage

_PUBLIC = ("/health", "/ready")
_BODILESS = ("GET", "HEAD", "OPTIONS", "DELETE", "TRACE")
_ANYBODY = Key(id="", name="open", sha256="", created=datetime.fromtimestamp(0, UTC))


class Access:
    """The outermost policy. It leaves in scope["manta"]:

    ``key`` (name), ``owner`` (the same for the same secret, whatever its name), ``priority`` (vLLM's number), ``body``
    (the parsed JSON, where it is JSON) and ``reserve`` (sets tokens aside; for `Measure`, which does the rest for other
    formats and leaves ``usage`` and ``status``).

    What is counted is counted in this process, and what other replicas have told is added.
    """

    def __init__(
        self,
        app: ASGIApp,
        spec: AccessSpec,
        keys: KeyRing,
        media_types: Collection[str] = (),
        clock: Callable[[], float] = time.monotonic,
        uploads: Mapping[str, int] | None = None,
        others: Others | None = None,
    ) -> None:
        """Wraps ``app``.

        Args:
            app: what stands inside.
            spec: the limits, and whether everybody may come in.
            keys: who may.
            media_types: types of bodies beside JSON, which something inside turns into JSON and hands to `Measure`;
                others are refused, because what they hold could not be checked.
            clock: seconds; never goes back.
            uploads: paths to which forms are sent, and the most bytes of each: what stands inside reads them as they
                come, and bounds how long that takes.
            others: what a key uses in other replicas; null where there are none.
        """
        self.app, self._spec, self._keys, self._clock = app, spec, keys, clock
        self._media_types = {JSON, *media_types}
        self._uploads = dict(uploads or {})
        self._defaults = Limits(
            requests_per_min=spec.requests_per_min,
            tokens_per_min=spec.tokens_per_min,
            max_concurrent=spec.max_concurrent,
        )
        self._accounts: dict[str, Account] = {}
        self._others = others

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        if scope["type"] == "websocket":  # no limit above holds for one, so none is let in
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        scope.setdefault("manta", {})
        ticket: Ticket | None = None
        try:
            headers = read_headers(scope["headers"], self._spec.max_header_bytes)
            _check_framing(scope["method"], headers, self._uploads.get(scope["path"], self._spec.max_body_bytes))
            if scope["path"] in _PUBLIC and scope["method"] in ("GET", "HEAD"):
                await self.app(scope, receive, send)
                return
            key = self._who(headers)
            ticket = self._enter(key)
            scope, receive = await self._take_body(scope, receive, headers, key, ticket)
        except Gone:
            self._leave(scope, ticket)
            return
        except Refused as refused:
            self._leave(scope, ticket)
            await refuse_with(send, refused)
            return
        except BaseException:
            self._leave(scope, ticket)
            raise
        try:
            await self.app(scope, receive, self._with_limits(send, ticket))
        finally:
            self._leave(scope, ticket)

    def _who(self, headers: dict[bytes, bytes]) -> Key:
        scheme, _, token = headers.get(b"authorization", b"").strip().partition(b" ")
        key = self._keys.find(token.strip()) if scheme.lower() == b"bearer" else None
        if key is not None:
            return key
        if self._spec.open:
            return _ANYBODY
        said = "This API key is not valid" if token else "There is no API key in this request"
        raise Refused(
            401,
            f"{said}; send it as 'Authorization: Bearer KEY'.",
            code="invalid_api_key",
            headers=[("www-authenticate", 'Bearer realm="manta"' + (', error="invalid_token"' if token else ""))],
        )

    def _enter(self, key: Key) -> Ticket:
        account = self._accounts.setdefault(key.id, Account())
        limits, now = key.limits.over(self._defaults), self._clock()
        if self._others is not None and limits != Limits():
            self._others.follow(self._accounts)
        entered = account.enter(limits, now)
        if isinstance(entered, Wait):
            raise _too_many(entered, account.headers(limits, now))
        return entered

    async def _take_body(
        self, scope: Scope, receive: Receive, headers: dict[bytes, bytes], key: Key, ticket: Ticket
    ) -> tuple[Scope, Receive]:
        """Reads and checks the body; what goes on is what was checked."""
        manta = scope["manta"]
        manta["key"], manta["priority"], manta["owner"] = key.name, key.priority.number, key.sha256 or key.name

        def reserve(tokens: int) -> None:
            now = self._clock()
            if wait := ticket.reserve(tokens, now):
                raise _too_many(wait, ticket.account.headers(ticket.limits, now))

        manta["reserve"] = reserve
        is_upload = scope["path"] in self._uploads and media_type(scope["headers"]) == FORM
        if scope["method"] in _BODILESS or is_upload:
            return scope, receive
        raw = await read_body(receive, self._spec.max_body_bytes, self._spec.body_timeout_s)
        if not raw:
            return with_length(scope, 0), replay(raw, receive)
        kind = media_type(scope["headers"])
        if kind not in self._media_types or headers.get(b"content-encoding", b"identity") != b"identity":
            known = ", ".join(sorted(self._media_types))
            raise Refused(415, f"A body must be {known}, not compressed.", code="unsupported_media_type")
        if kind == JSON:
            admitted = admit(raw, scope["path"], self._spec, key.priority.number)
            reserve(admitted.tokens)
            manta["body"], manta["priority"] = admitted.body, admitted.priority
            raw = admitted.raw
        return with_length(scope, len(raw)), replay(raw, receive)

    def _with_limits(self, send: Send, ticket: Ticket) -> Send:
        """Adds the ``x-ratelimit-*`` headers to the answer."""
        account, limits = ticket.account, ticket.limits
        if limits.requests_per_min is None and limits.tokens_per_min is None:
            return send

        def add(message: Message) -> Awaitable[None]:
            if message["type"] == "http.response.start":
                more = [(name.encode(), value.encode()) for name, value in account.headers(limits, self._clock())]
                message = {**message, "headers": [*message.get("headers", ()), *more]}
            return send(message)

        return add

    def _leave(self, scope: Scope, ticket: Ticket | None) -> None:
        if ticket is None:
            return
        usage: Usage | None = scope["manta"].get("usage")
        # refused by what is inside, before an engine took it
        is_free = scope["manta"].get("status") in (400, 404, 413, 415, 422, 429, 503)
        ticket.close(0 if is_free else usage.total if usage else None, self._clock())


def _check_framing(method: str, headers: dict[bytes, bytes], max_bytes: int) -> None:
    """Refuses by the headers alone what need not be read."""
    if b"content-length" in headers and b"transfer-encoding" in headers:  # servers differ on which one holds
        raise Refused(400, "A body has a content-length or a transfer-encoding.", code="invalid_header", headers=CLOSE)
    length = headers.get(b"content-length", b"0")
    if not length.isdigit():
        raise Refused(400, "The header content-length must be a whole number.", code="invalid_header")
    if len(length) > 18 or int(length) > max_bytes:
        raise too_large(max_bytes)
    if method in _BODILESS and (int(length) or b"transfer-encoding" in headers):
        raise Refused(400, f"A {method} request has no body.", code="invalid_header", headers=CLOSE)


def _too_many(wait: Wait, headers: Sequence[tuple[str, str]]) -> Refused:
    # OpenAI's clients try a 429 again by themselves; not where no wait helps
    again = [("x-should-retry", "false")] if wait.seconds is None else [("retry-after", str(wait.seconds))]
    message = f"The {wait.reason}." if wait.seconds is None else f"The {wait.reason}; try again in {wait.seconds} s."
    return Refused(429, message, kind="rate_limit_error", code="rate_limit_exceeded", headers=[*again, *headers])
