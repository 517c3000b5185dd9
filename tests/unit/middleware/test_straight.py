"""A straight way answers as the route itself does, on an app that is made as vLLM makes its own."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException

from serve.middleware.straight import Straight, straighten

PATH = "/v1/chat/completions"
seen: list[str] = []


class Asked(BaseModel):
    model_config = ConfigDict(extra="allow")
    text: str
    count: int = Field(default=1, ge=1)
    stream: bool = False


async def check_type(raw_request: Request) -> None:
    if raw_request.headers.get("content-type", "").split(";")[0] != "application/json":
        raise RequestValidationError(errors=["only JSON"])


def wrapped_twice(function: Any) -> Any:
    """As vLLM's own decorators are: FastAPI sees the signature within."""

    @functools.wraps(function)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        seen.append("wrapper")
        return await function(*args, **kwargs)

    @functools.wraps(wrapper)
    async def outer(*args: Any, **kwargs: Any) -> Any:
        return await wrapper(*args, **kwargs)

    return outer


async def words(asked: Asked) -> AsyncIterator[str]:
    try:
        for number in range(asked.count):
            yield f"data: {asked.text} {number}\n\n"
            await asyncio.sleep(60 if asked.text == "slow" else 0)
    finally:
        seen.append("closed")


def make_app(is_straight: bool, **state: Any) -> FastAPI:
    router = APIRouter()

    @router.post(PATH, dependencies=[Depends(check_type)])
    @wrapped_twice
    async def create(request: Asked, raw_request: Request) -> Any:
        if request.text == "bug":
            raise TypeError("a bug")
        if request.text == "refused":
            raise HTTPException(409, "no")
        if request.text == "hangs":
            try:
                await asyncio.sleep(60)
            finally:
                seen.append("cancelled")
        if request.text == "background":
            return StreamingResponse(words(request), background=BackgroundTask(seen.append, "background"))
        if request.stream:
            return StreamingResponse(words(request), media_type="text/event-stream", headers={"x-one": "1"})
        raw_request.state.left = "here"
        body = {**request.model_dump(), "header": raw_request.headers.get("x-request-id"), "extra": request.model_extra}
        return JSONResponse(body, status_code=201, headers={"x-two": "2"})

    @router.post("/v1/same")
    async def same(request: Asked, raw_request: Request) -> Any:
        return await create(request, raw_request)

    @router.get(PATH)
    @router.put("/v1/other")
    async def other() -> str:
        return "other"

    app = FastAPI()
    for name, value in state.items():
        setattr(app.state, name, value)
    app.include_router(router)

    async def stumble(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"error": type(error).__name__}, 418)

    app.add_exception_handler(TypeError, stumble)
    if is_straight:
        straighten(app, [PATH, "/v1/other", "/v1/same"])
    return app


async def ask(app: FastAPI, method: str, path: str, content: bytes, headers: dict[str, str]) -> Any:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        response = await client.request(method, path, content=content, headers=headers)
    return response.status_code, sorted(response.headers.items()), response.content


JSON = {"content-type": "application/json; charset=utf-8", "x-request-id": "r1"}
CASES = [
    ("POST", PATH, b'{"text": "a", "more": [1]}', JSON),
    ("POST", PATH, b'{"text": "a", "stream": true, "count": 3}', JSON),
    ("POST", PATH, b'{"text": "background", "count": 2}', JSON),
    ("POST", PATH, b'{"text": "a", "count": "2", "stream": "yes"}', JSON),
    ("POST", PATH, b'{"text": "a", "count": 0}', JSON),
    ("POST", PATH, b'{"count": 1}', JSON),
    ("POST", PATH, b"[1]", JSON),
    ("POST", PATH, b'{"text": ', JSON),
    ("POST", PATH, b"\xff", JSON),
    ("POST", PATH, b"", JSON),
    ("POST", PATH, b"[" * 100_000, JSON),
    ("POST", PATH, b'{"text": "a"}', {}),
    ("POST", PATH, b'{"text": "a"}', {"content-type": "text/plain"}),
    ("POST", PATH, b'{"text": "bug"}', JSON),
    ("POST", PATH, b'{"text": "refused"}', JSON),
    ("GET", PATH, b"", {}),
    ("PUT", PATH, b"", {}),
    ("PUT", "/v1/other", b"", {}),
    ("POST", "/v1/none", b"{}", JSON),
    ("POST", "/v1/same", b'{"text": "a"}', JSON),
    ("POST", PATH, b'{"text": ', {"content-type": "application/x+json"}),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]} {case[1]} {case[2][:30]!r}")
async def test_answers_are_those_of_the_route(case):
    expected = await ask(make_app(is_straight=False), *case)
    assert await ask(make_app(is_straight=True), *case) == expected


async def test_the_straight_way_is_taken():
    seen.clear()
    await ask(make_app(is_straight=True), "POST", PATH, b'{"text": "background"}', JSON)
    assert seen == ["closed", "background"]
    await ask(make_app(is_straight=False), "POST", PATH, b'{"text": "a"}', JSON)
    assert seen[2:] == ["wrapper"]


def test_a_route_of_another_form_stays_as_it_is():
    app = make_app(is_straight=True)
    assert [route._route.path for route in app.router.routes if isinstance(route, Straight)] == [PATH]
    app = make_app(is_straight=True, enable_server_load_tracking=True)
    assert not [route for route in app.router.routes if isinstance(route, Straight)]
    assert "/v1/other" in make_app(is_straight=True).openapi()["paths"]


def scope_of(app: FastAPI) -> dict[str, Any]:
    headers = [(b"content-type", b"application/json")]
    known = {"type": "http", "method": "POST", "path": PATH, "raw_path": PATH.encode(), "query_string": b""}
    return {**known, "headers": headers, "app": app, "state": {}, "asgi": {"version": "3.0", "spec_version": "2.3"}}


@pytest.mark.parametrize(("text", "ends"), [("hangs", "cancelled"), ("slow", "closed")])
@pytest.mark.parametrize("who", ["client", "caller"])
async def test_who_leaves_ends_it(text, ends, who):
    seen.clear()
    app, left, messages, said = make_app(is_straight=True), asyncio.Event(), [], []
    messages.append({"type": "http.request", "body": f'{{"text": "{text}", "stream": true, "count": 2}}'.encode()})

    async def receive() -> Any:
        if messages:
            return messages.pop()
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        said.append(message["type"])

    task = asyncio.create_task(app(scope_of(app), receive, send))  # type: ignore[arg-type]
    await asyncio.sleep(0.05)
    assert not task.done()
    if who == "client":
        left.set()
        await asyncio.wait_for(task, 2)
    else:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, 2)
    for _ in range(5):  # a generator that nobody asks any more is closed by the loop
        await asyncio.sleep(0)
    assert seen == [ends]
    assert said == (["http.response.start", "http.response.body"] if text == "slow" else [])


async def test_a_stream_of_a_function_that_hears_of_nothing_is_not_sent():
    app, messages, said = make_app(is_straight=True), [{"type": "http.request", "body": b'{"text": "a"}'}], []

    async def deaf(asked: Asked, raw: Request) -> Any:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            return StreamingResponse(words(asked))

    async def receive() -> Any:
        return messages.pop() if messages else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        said.append(message["type"])

    next(route for route in app.router.routes if isinstance(route, Straight))._function = deaf
    await asyncio.wait_for(app(scope_of(app), receive, send), 2)  # type: ignore[arg-type]
    assert said == []


async def test_a_client_that_leaves_within_its_body_gets_nothing():
    app, said = make_app(is_straight=True), []
    messages = [{"type": "http.disconnect"}, {"type": "http.request", "body": b'{"te', "more_body": True}]

    async def receive() -> Any:
        return messages.pop()

    async def send(message: Any) -> None:
        said.append(message["type"])

    await asyncio.wait_for(app(scope_of(app), receive, send), 2)  # type: ignore[arg-type]
    assert said == []


def test_vllm_s_own_routes_have_the_form():
    from vllm.entrypoints.openai.chat_completion import api_router as chat
    from vllm.entrypoints.openai.completion import api_router as completion

    app = FastAPI()
    chat.attach_router(app)
    completion.attach_router(app)
    straighten(app, [PATH, "/v1/completions"])
    assert [route._route.path for route in app.router.routes if isinstance(route, Straight)] == [
        PATH,
        "/v1/completions",
    ]


async def test_a_timeout_of_the_function_is_its_own():
    app = make_app(is_straight=True)

    async def fail(asked: Asked, raw: Request) -> Any:
        raise TimeoutError("its own")

    route = next(route for route in app.router.routes if isinstance(route, Straight))
    route._function = fail
    status, _, _ = await ask(app, "POST", PATH, b'{"text": "a"}', JSON)
    assert status == 500
