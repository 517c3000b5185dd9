"""Inside the negotiation of formats: admits what only now is JSON, and sees what each answer used."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from conf.schema.access import AccessSpec
from serve.middleware.answer import ASGIApp, Message, Receive, Refused, Scope, Send, refuse_with
from serve.middleware.body import JSON, Gone, admit, read_body, replay
from serve.middleware.header import media_type, with_length
from serve.middleware.usage import UsageReader, reported_usage


class Measure:
    """Leaves ``usage`` (`Usage`, or absent) and, where `Access` could not read the body, ``body`` in scope["manta"].

    It stands directly inside the negotiation, because there a body of any format is JSON, and so is each answer.
    """

    def __init__(self, app: ASGIApp, spec: AccessSpec) -> None:
        """Wraps ``app``."""
        self.app, self._spec = app, spec

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        if scope["type"] != "http" or "manta" not in scope:
            await self.app(scope, receive, send)
            return
        reader: UsageReader | None = None
        manta = scope["manta"]

        def watch(message: Message) -> Awaitable[None]:
            nonlocal reader
            if message["type"] == "http.response.start":
                manta["status"] = message["status"]
                reader = UsageReader(media_type(message.get("headers", ())))
            elif message["type"] == "http.response.body" and reader is not None:
                reader.feed(message.get("body", b""))
                if not message.get("more_body", False) and (usage := reader.close() or reported_usage(scope)):
                    manta["usage"] = usage
            return send(message)

        if "body" not in manta and scope["method"] not in ("GET", "HEAD") and media_type(scope["headers"]) == JSON:
            try:
                # a body in a smaller format grows on its way to JSON
                raw = await read_body(receive, 4 * self._spec.max_body_bytes, self._spec.body_timeout_s)
                scope, receive = self._admit(scope, raw, receive)
            except Gone:
                return
            except Refused as refused:
                await refuse_with(watch, refused)
                return
        await self.app(scope, receive, watch)

    def _admit(self, scope: Scope, raw: bytes, receive: Receive) -> tuple[Scope, Receive]:
        manta = scope["manta"]
        if not raw:
            return scope, replay(raw, receive)
        admitted = admit(raw, scope["path"], self._spec, manta.get("priority", 0))
        reserve: Callable[[int], None] | None = manta.get("reserve")
        if reserve is not None:
            reserve(admitted.tokens)
        manta["body"], manta["priority"] = admitted.body, admitted.priority
        return with_length(scope, len(admitted.raw)), replay(admitted.raw, receive)
