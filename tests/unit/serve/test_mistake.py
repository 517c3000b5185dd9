from __future__ import annotations

from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from serve.middleware.mistake import shape_errors

ERRORS: dict[str, Exception] = {
    "index": IndexError("list index out of range"),
    "key": KeyError("role"),
    "attribute": AttributeError("'NoneType' object has no attribute 'text'"),
    "bug": RuntimeError("10.0.0.1 /srv/model"),
    "own": ValueError("temperature must be at least 0"),
    "teapot": HTTPException(418),
}


async def fail(request: Request) -> Any:
    raise ERRORS[request.path_params["name"]]


async def own(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"error": {"message": str(error), "type": "x", "param": None, "code": 400}}, 400)


async def ask(method: str, path: str) -> httpx.Response:
    app = Starlette(routes=[Route("/{name}", fail, methods=["POST"])], exception_handlers={ValueError: own})
    shape_errors(app)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
        return await client.request(method, path)


@pytest.mark.parametrize(
    "method, path, status, code",
    [
        ("POST", "/nothing/here", 404, "not_found"),
        ("GET", "/index", 405, "method_not_allowed"),
        ("POST", "/teapot", 418, "i'm_a_teapot"),
        ("POST", "/index", 400, "invalid_request"),
        ("POST", "/key", 400, "invalid_request"),
        ("POST", "/attribute", 400, "invalid_request"),
        ("POST", "/bug", 500, "internal_error"),
    ],
)
async def test_an_error_has_openai_s_shape_and_says_nothing_of_the_inside(
    method: str, path: str, status: int, code: str
):
    answer = await ask(method, path)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (status, code)
    assert set(error) == {"message", "type", "param", "code"}
    for raised in ERRORS.values():
        assert str(raised) not in error["message"] or isinstance(raised, HTTPException)
    assert ("allow" in answer.headers) == (status == 405)


async def test_what_the_app_handles_itself_it_still_does():
    answer = await ask("POST", "/own")
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, "temperature must be at least 0")
