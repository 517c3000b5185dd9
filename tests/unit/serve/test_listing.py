from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from serve.catalogue import Catalogue, Entry
from serve.middleware.answer import ASGIApp, Receive, Scope, Send, answer
from serve.middleware.listing import Listing
from serve.middleware.routes import Routes

ENTRIES = [("big", None, ""), ("big-lora", "big", ""), ("org/small", None, "small")]
ALL = Catalogue(
    entries=[Entry(name=name, parent=parent, key=key, max_model_len=8) for name, parent, key in ENTRIES],
    created=7,
    is_open=True,
    max_body_bytes=1,
    body_timeout_s=1,
)


async def vllm(scope: Scope, receive: Receive, send: Send) -> None:
    await answer(send, 200, b'"vllm"')


def app(known: Catalogue | None) -> ASGIApp:
    async def know() -> Catalogue | None:
        return known

    async def is_ready() -> bool:
        return True

    return Routes(Listing(vllm, know), is_ready)


async def ask(path: str, known: Catalogue | None = ALL, method: str = "GET") -> httpx.Response:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app(known)), base_url="http://service") as client:
        return await client.request(method, path)


async def test_all_models_and_adapters_of_the_service_are_listed():
    listed = (await ask("/v1/models")).json()
    assert listed["object"] == "list"
    assert [card["id"] for card in listed["data"]] == [name for name, *_ in ENTRIES]
    assert {card["object"] for card in listed["data"]} == {"model"}
    assert [card["parent"] for card in listed["data"]] == [None, "big", None]
    assert all(card["created"] == 7 and card["max_model_len"] == 8 for card in listed["data"])


@pytest.mark.parametrize("name", [name for name, *_ in ENTRIES])
async def test_one_is_found_by_its_name_a_slash_in_it_encoded_or_not(name: str):
    for path in (name, name.replace("/", "%2F")):
        assert (await ask(f"/v1/models/{path}")).json()["id"] == name


@pytest.mark.parametrize("name", ["small", "nobody", "big/", "BIG", "x" * 5000])
async def test_another_name_is_404(name: str):
    said = await ask(f"/v1/models/{name}")
    assert (said.status_code, said.json()["error"]["code"]) == (404, "model_not_found")


@pytest.mark.parametrize("path", ["/v1/models/", "/v1/models/..", "/v1/models/../sleep", "/v1/modelsbig"])
async def test_what_is_no_name_is_no_path(path: str):
    said: list[Any] = []

    async def send(message: Any) -> None:
        said.append(message)

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    await app(ALL)({"type": "http", "path": path, "method": "GET", "headers": []}, receive, send)
    assert said[0]["status"] == 404
    assert json.loads(said[1]["body"])["error"]["code"] != "model_not_found"


async def test_only_a_get_names_a_model():
    assert (await ask("/v1/models/big", method="POST")).status_code == 404
    assert (await ask("/v1/models", method="POST")).json() == "vllm"


async def test_without_a_catalogue_the_engine_tells_of_its_own():
    assert (await ask("/v1/models", None)).json() == "vllm"
    assert (await ask("/v1/models/big", None)).status_code == 404


async def asked_of(model: str, status: int, known: Catalogue | None = ALL) -> tuple[int, str]:
    """Asks a replica of "big", whose app answers with a status and "own", for a model; returns what came."""
    said: list[Any] = []

    async def own(scope: Scope, receive: Receive, send: Send) -> None:
        await answer(send, status, b"own")

    async def know() -> Catalogue | None:
        return known

    async def send(message: Any) -> None:
        said.append(message)

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    scope = {"type": "http", "path": "/v1/completions", "method": "POST", "manta": {"body": {"model": model}}}
    await Listing(own, know, ["big", "big-lora"])(scope, receive, send)
    return said[0]["status"], b"".join(message.get("body", b"") for message in said).decode()


async def test_who_asks_for_another_model_hears_which_there_are():
    status, body = await asked_of("bag", 404)
    assert status == 404
    message = json.loads(body)["error"]["message"]
    assert message == "There is no model 'bag'; there are big, big-lora, org/small."


@pytest.mark.parametrize(
    "model, status, known", [("big", 404, ALL), ("new", 200, ALL), ("bag", 400, ALL), ("bag", 404, None)]
)
async def test_all_else_is_the_models_own_word(model: str, status: int, known: Catalogue | None):
    assert await asked_of(model, status, known) == (status, "own")
