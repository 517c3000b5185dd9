"""Between clients and Ray Serve's proxy, in a service of several models: the body's ``model`` says which one answers.

The first model stands at the root; it has the last word on what names no other model, or nothing that can be read. The
others stand below `serve.catalogue.PREFIX`, which no client reaches by itself. With one model no body is read here.
"""

from __future__ import annotations

import asyncio

import msgspec

from serve.catalogue import PREFIX, Catalogue, Know, prefix_of
from serve.middleware.answer import ASGIApp, Message, Receive, Refused, Scope, Send, refuse, refuse_with
from serve.middleware.body import JSON, Gone, read_body, replay
from serve.middleware.header import media_type
from serve.middleware.routes import EXPOSED

READY_S = 10.0
"""Within this each model must say whether it is ready."""
_SMALL_BYTES = 256 << 10
"""What is longer is looked through in a thread: the event loop has others to serve."""


class _Named(msgspec.Struct):
    model: str | None = None


_named = msgspec.json.Decoder(_Named)


class Dispatch:
    """Pure ASGI. Belongs directly around Ray Serve's app, inside of what puts errors into OpenAI's shape."""

    def __init__(self, app: ASGIApp, know: Know) -> None:
        """Args: Ray Serve's app, and what says which models there are."""
        self._app, self._know = app, know

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        path = scope["path"]
        if path.startswith(PREFIX):
            if scope["type"] == "http":
                await refuse(send, 404, "there is nothing at this path", "not_found_error", "not_found")
            else:
                await send({"type": "websocket.close", "code": 1008})
            return
        catalogue = await self._know()
        if scope["type"] != "http" or catalogue is None or not catalogue.keys:
            await self._app(scope, receive, send)
        elif path == "/ready" and scope["method"] in ("GET", "HEAD"):
            await self._ready(scope, send, catalogue)
        elif path in EXPOSED and scope["method"] == "POST" and _may_come_in(scope, catalogue):
            await self._dispatch(scope, receive, send, catalogue)
        else:
            await self._app(scope, receive, send)

    async def _dispatch(self, scope: Scope, receive: Receive, send: Send, catalogue: Catalogue) -> None:
        try:
            raw = await read_body(receive, catalogue.max_body_bytes, catalogue.body_timeout_s)
        except Gone:
            return
        except Refused as refused:
            await refuse_with(send, refused)
            return
        kind, path = media_type(scope["headers"]), scope["path"]
        if len(raw) <= _SMALL_BYTES:
            name = model_of(kind, raw, path, catalogue.max_body_bytes)
        else:
            name = await asyncio.to_thread(model_of, kind, raw, path, catalogue.max_body_bytes)
        prefix = catalogue.prefixes.get(name, "") if name is not None else ""
        await self._app({**scope, "path": prefix + path}, replay(raw, receive), send)

    async def _ready(self, scope: Scope, send: Send, catalogue: Catalogue) -> None:
        """Answers for the service: with the first model's words, where no other one says that it is not ready."""
        first, *others = await asyncio.gather(*(self._ask(scope, key) for key in ["", *catalogue.keys]))
        if _status(first) == 200 and any(_status(said) != 200 for said in others):
            message = "a model cannot answer now"
            await refuse(send, 503, message, "service_unavailable", headers=[("retry-after", "5")])
            return
        for said in first:
            await send(said)

    async def _ask(self, scope: Scope, key: str) -> list[Message]:
        said: list[Message] = []
        is_asked = False

        async def receive() -> Message:
            nonlocal is_asked
            if is_asked:  # Ray Serve listens on, for a client that leaves
                await asyncio.Event().wait()
            is_asked = True
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Message) -> None:
            said.append(message)

        headers = [*scope["headers"], (b"x-request-timeout-seconds", str(READY_S).encode())]
        asked = {**scope, "path": prefix_of(key) + scope["path"], "headers": headers}
        await self._app(asked, receive, send)
        return said


def model_of(kind: str, raw: bytes, path: str, max_bytes: int) -> str | None:
    """Returns the model that a body names; null where it names none, or cannot be read: its replica says so.

    Args:
        kind: the media type.
        raw: the body.
        path: of the request.
        max_bytes: of a body.
    """
    try:
        if kind == JSON:
            return _named.decode(raw).model
        # who sends JSON alone does not pay for the libraries of the others
        from serve.wire.formats import MEDIA_TYPES, media_types, read

        name = read(MEDIA_TYPES[kind], raw, path, max_bytes).get("model") if kind in media_types(path) else None
    except (ValueError, RecursionError):
        return None
    return name if isinstance(name, str) else None


def unprefixed(app: ASGIApp) -> ASGIApp:
    """Returns an app for a replica of a further model: it finds the path that the client asked for."""

    async def ask(scope: Scope, receive: Receive, send: Send) -> None:
        if root := scope.get("root_path"):
            scope = {**scope, "path": scope["path"].removeprefix(root), "root_path": ""}
        await app(scope, receive, send)

    return ask


def _may_come_in(scope: Scope, catalogue: Catalogue) -> bool:
    """Whether the body is worth reading: who sends no key is told so without."""
    return catalogue.is_open or any(name == b"authorization" for name, _ in scope["headers"])


def _status(said: list[Message]) -> int:
    return next((message["status"] for message in said if message["type"] == "http.response.start"), 500)
