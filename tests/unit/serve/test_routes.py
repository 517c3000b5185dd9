from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from conf import entry
from conf.errors import UserError
from serve.middleware.answer import ASGIApp
from serve.middleware.routes import EXPOSED, Routes
from serve.middleware.stack import middleware_of, wrapped


class Echo:
    """An app that answers with its path, within the names of the layers that were passed."""

    def __init__(self, app: ASGIApp | None = None, name: str = "app") -> None:
        self.app, self.name = app, name

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        scope["passed"] = [*scope.get("passed", ()), self.name]
        if self.app is not None:
            await self.app(scope, receive, send)
        else:
            await send({"type": "reached", "passed": scope["passed"]})


async def ask(app: ASGIApp, path: str, kind: str = "http") -> list[Any]:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    await app({"type": kind, "path": path, "method": "GET", "headers": []}, receive, send)
    return sent


def routes(is_ready: bool = True) -> Routes:
    async def ready() -> bool:
        return is_ready

    return Routes(Echo(), ready)


def test_what_is_exposed_is_this_and_no_more():
    assert sorted(EXPOSED) == [
        "/classify",
        "/detokenize",
        "/health",
        "/metrics",
        "/openapi.json",
        "/ready",
        "/tokenize",
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/messages",
        "/v1/messages/count_tokens",
        "/v1/models",
        "/v1/rerank",
        "/v1/responses",
        "/v1/score",
    ]


@pytest.mark.parametrize("path", sorted(EXPOSED - {"/health", "/ready"}))
async def test_an_exposed_path_reaches_the_app(path: str):
    assert (await ask(routes(), path))[0]["type"] == "reached"


@pytest.mark.parametrize(
    "path", ["", "/", "/metrics/", "/v1/models/", "/v1/models/../sleep", "/V1/models", "/health/x"]
)
async def test_another_path_is_404_in_openai_s_shape(path: str):
    start, body = await ask(routes(), path)
    assert start["status"] == 404
    assert set(json.loads(body["body"])["error"]) == {"message", "type", "param", "code"}
    assert dict(start["headers"])[b"content-length"] == str(len(body["body"])).encode()


async def test_ready_says_what_the_engine_says_and_health_does_not_ask_it():
    for is_ready, status in ((True, 200), (False, 503)):
        assert (await ask(routes(is_ready), "/ready"))[0]["status"] == status
        assert (await ask(routes(is_ready), "/health"))[0]["status"] == 200
    assert b"retry-after" in dict((await ask(routes(False), "/ready"))[0]["headers"])


async def test_the_lifespan_is_the_app_s_and_a_websocket_is_closed():
    assert (await ask(routes(), "", "lifespan"))[0]["type"] == "reached"
    assert (await ask(routes(), "/v1/realtime", "websocket"))[0]["type"] == "websocket.close"


async def test_layers_lie_around_the_app_the_first_one_outermost():
    path = f"{Echo.__module__}:Echo"
    app = wrapped(Echo(), [(path, {"name": "outer"}), (path, {"name": "inner"})])
    assert (await ask(app, "/"))[0]["passed"] == ["outer", "inner", "app"]


def test_a_service_asks_who_is_there_and_remembers_its_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MANTA_HOME", str(tmp_path))
    monkeypatch.delenv("MANTA_API_KEYS", raising=False)
    with pytest.raises(UserError, match=r"^there are no API keys in .*manta keys add NAME"):
        middleware_of(entry.compose("serve", "model=demo"), "1")
    with pytest.raises(UserError, match=r"^access.open=true needs deployment.host"):
        middleware_of(entry.compose("serve", "model=demo", "access.open=true", "deployment.host=0.0.0.0"), "1")
    monkeypatch.setenv("MANTA_API_KEYS", "secret")
    layers = middleware_of(entry.compose("serve", "model=demo", "cache=off"), "1")
    assert [path.split(":")[1] for path, _ in layers] == ["make_access", "make_formats", "Deadline", "Cache"]
    assert "secret" not in repr(layers)
    wrapped(Echo(), layers)
