"""From a request's body to vLLM's function for it, and from what that gives to the client, with nothing between."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from typing import Any, get_type_hints

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response, StreamingResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.requests import ClientDisconnect
from starlette.routing import BaseRoute, Match

from serve.middleware.answer import Receive, Scope, Send
from serve.middleware.body import left, replay


def straighten(app: FastAPI, paths: Collection[str]) -> None:
    """Puts a `Straight` before each route of an app that can have one.

    Args:
        app: vLLM's; another has no such routes. Where it counts what runs, its routes stay as they are.
        paths: of the routes that matter.
    """
    if getattr(app.state, "enable_server_load_tracking", False):
        return
    found = [_straight(route) for route in app.router.routes if isinstance(route, APIRoute) and route.path in paths]
    app.router.routes[:0] = [route for route in found if route is not None]


def _straight(route: APIRoute) -> Straight | None:
    # around it are two layers: one cancels the function when its client leaves, as a `Straight` does, the other counts.
    # What has none of them may call a function that has, which goes on where its caller is cancelled
    function = inspect.unwrap(route.endpoint)
    if function is route.endpoint or not _takes(function, "request", "raw_request") or route.methods != {"POST"}:
        return None
    checks = [one.dependency for one in route.dependencies]
    if not all(check is not None and _takes(check, "raw_request") for check in checks):
        return None
    try:
        body = get_type_hints(function, include_extras=True)["request"]
    except (KeyError, NameError, TypeError):
        return None
    if not (isinstance(body, type) and issubclass(body, BaseModel)):
        return None
    return Straight(route, body, function, checks)  # type: ignore[arg-type]


def _takes(function: Callable[..., Any], *names: str) -> bool:
    return inspect.iscoroutinefunction(function) and [*inspect.signature(function).parameters] == [*names]


class Straight(BaseRoute):
    """Does what FastAPI does for a route, without looking for what the route may need: a tenth of a replica's time.

    A body that is no request goes to the route itself, which says so.
    """

    def __init__(
        self,
        route: APIRoute,
        body: type[BaseModel],
        function: Callable[[Any, Request], Awaitable[Response]],
        checks: Collection[Callable[[Request], Awaitable[None]]],
    ) -> None:
        """Args: vLLM's route; what its body is; its function, without decorators; and what looks at requests before."""
        self._route, self._body, self._function, self._checks = route, body, function, checks

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """See Starlette."""
        is_post = scope["type"] == "http" and scope["method"] == "POST"
        is_ours = is_post and scope["path"].removeprefix(scope.get("root_path", "")) == self._route.path
        return (Match.FULL if is_ours else Match.NONE), {}

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI.

        Raises:
            Exception: what vLLM's function raises; the app has handlers for it.
        """
        raw = Request(scope, receive)
        try:
            content = await raw.body()  # it keeps it, for whoever asks again
        except ClientDisconnect:
            return
        try:
            for check in self._checks:
                await check(raw)
            asked = self._body.model_validate(json.loads(content), from_attributes=True)
        except (ValueError, RequestValidationError, RecursionError):
            await self._route.handle(scope, replay(content, receive), send)
            return
        gone, patience = asyncio.ensure_future(left(receive)), asyncio.timeout(None)
        try:
            async with patience:
                gone.add_done_callback(lambda _: _end(patience))
                response = await self._function(asked, raw)
                if gone.done():  # it has an answer nevertheless
                    return
                if isinstance(response, StreamingResponse) and response.background is None:
                    await response.stream_response(send)
                    return
        except TimeoutError:
            if not patience.expired():
                raise
            return
        finally:
            gone.cancel()
        await response(scope, receive, send)


def _end(patience: asyncio.Timeout) -> None:
    with suppress(RuntimeError):  # the answer was complete
        patience.reschedule(0.0)
