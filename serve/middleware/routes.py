"""What a client can reach. vLLM's app has more: profiling, weights, adapters, remote calls."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable

from serve.middleware.answer import ASGIApp, Receive, Scope, Send, answer, refuse

EXPOSED = frozenset(
    {
        "/health",
        "/ready",
        "/metrics",
        "/openapi.json",
        "/v1/models",
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/responses",
        "/v1/messages",
        "/v1/messages/count_tokens",
        "/v1/embeddings",
        "/v1/score",
        "/v1/rerank",
        "/classify",
        "/tokenize",
        "/detokenize",
    }
)
"""Every path that is answered, and what names a model below `MODELS`; another one is 404, whatever vLLM has there."""
MODELS, FILES, BATCHES = "/v1/models", "/v1/files", "/v1/batches"
ID = "[a-z0-9_-]{1,64}"
"""What a file or a batch is called, as a pattern."""
_KEPT = re.compile(rf"({FILES}|{BATCHES})(?:/{ID}(?:/content|/cancel)?)?")


def kept_route(path: str) -> str | None:
    """Returns `FILES` or `BATCHES` for a path of one of these, whatever id it has; else null."""
    found = _KEPT.fullmatch(path)
    return found[1] if found else None


class Routes:
    """The outermost layer of a replica: answers /health and /ready itself, and refuses what is not `EXPOSED`."""

    def __init__(self, app: ASGIApp, is_ready: Callable[[], Awaitable[bool]], has_batches: bool = False) -> None:
        """Args: the next app, what says whether a request would succeed, and whether there are files and batches."""
        self._app = app
        self._is_ready = is_ready
        self._has_batches = has_batches

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
        elif scope["path"] == "/health":
            await answer(send, 200, b"")
        elif scope["path"] == "/ready":
            if await self._is_ready():
                await answer(send, 200, b"")
            else:
                message = "the engine cannot answer now"
                await refuse(send, 503, message, "service_unavailable", headers=[("retry-after", "5")])
        elif self._is_answered(scope["path"], scope["method"]):
            await self._app(scope, receive, send)
        else:
            await refuse(send, 404, "there is nothing at this path", "not_found_error", "not_found")

    def _is_answered(self, path: str, method: str) -> bool:
        if path in EXPOSED or (method == "GET" and _names_model(path)):
            return True
        return self._has_batches and kept_route(path) is not None


def _names_model(path: str) -> bool:
    name = path.removeprefix(f"{MODELS}/")
    return 0 < len(name) < len(path) and ".." not in name.split("/")
