from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from conf.schema.cache import CacheKind, CacheSpec
from conf.schema.sampling import SamplingSpec
from pipelines.batch.openai_response import chat_body
from serve.cache.store import MemoryStore, Store
from serve.cache.warm import chat_request, warm
from serve.engine.protocol import Sample
from serve.middleware.cache import Cache

CHAT, EMBEDDINGS = "/v1/chat/completions", "/v1/embeddings"
BODY = {"model": "demo", "messages": [{"role": "user", "content": "Hello"}], "temperature": 0, "max_tokens": 8}


class Service:
    """A real app that counts what it computes; each answer waits for `gate`."""

    def __init__(self, wrap: Callable[[Any], Any] = lambda app: app, store: Store | None = None, **spec: Any) -> None:
        self.count = 0
        self.num_aborted = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.begun = asyncio.Event()
        self.status = 200
        self.is_broken = False
        routes = [
            Route(CHAT, self.chat, methods=["POST"]),
            Route(EMBEDDINGS, self.embed, methods=["POST"]),
            Route("/v1/models", lambda _: JSONResponse({"data": []})),
        ]
        self.spec = CacheSpec(kind=CacheKind.memory, **spec)
        self.store = store or MemoryStore(self.spec)
        self.cache = Cache(Starlette(routes=routes), self.spec, "f", self.store)
        transport = httpx.ASGITransport(wrap(self.cache), raise_app_exceptions=False)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://test")

    async def chat(self, request: Request) -> Response:
        asked = await request.json()
        self.count += 1
        number = self.count
        self.begun.set()
        watch = asyncio.ensure_future(_gone(request))
        gate = asyncio.ensure_future(self.gate.wait())
        await asyncio.wait((watch, gate), return_when=asyncio.FIRST_COMPLETED)
        is_aborted = not gate.done()
        watch.cancel()
        gate.cancel()
        if is_aborted:
            self.num_aborted += 1
            return Response(status_code=499)
        if self.is_broken:
            raise RuntimeError("the engine is dead")
        if self.status != 200:
            error = {"message": "no", "type": "server_error", "param": None, "code": None}
            return JSONResponse({"error": error}, self.status, headers={"retry-after": "3"})
        if asked.get("stream"):
            return StreamingResponse(_stream(number), media_type="text/event-stream")
        sample = Sample(text=f"answer {number}", finish_reason="stop", completion_tokens=2)
        return JSONResponse(
            chat_body(request_id=str(number), created=7, model="demo", samples=[sample], prompt_tokens=3)
        )

    async def embed(self, request: Request) -> Response:
        self.count += 1
        data = [{"object": "embedding", "index": 0, "embedding": [0.25, self.count]}]
        return JSONResponse({"object": "list", "data": data, "model": "demo", "usage": {"prompt_tokens": 1}})

    async def ask(self, path: str = CHAT, headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
        return await self.client.post(path, json={**BODY, **fields}, headers=headers)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _stream(number: int) -> AsyncIterator[str]:
    yield f'data: {{"choices":[{{"delta":{{"content":"{number}"}}}}]}}\n\n'
    yield "data: [DONE]\n\n"


def said(response: httpx.Response) -> str:
    return response.headers["x-manta-cache"]


def content(response: httpx.Response) -> str:
    return response.json()["choices"][0]["message"]["content"]


async def turns(number: int = 50) -> None:
    """Lets other tasks run."""
    for _ in range(number):
        await asyncio.sleep(0)


async def test_an_answer_is_given_again_and_differs_in_id_and_time_alone():
    service = Service()
    first, second = await service.ask(), await service.ask()
    assert [said(first), said(second), service.count] == ["miss", "hit", 1]
    one, other = first.json(), second.json()
    assert {name for name in one if one[name] != other[name]} == {"id", "created"}
    assert set(one) == set(other)
    assert second.headers["content-type"] == "application/json"


async def test_a_thousand_equal_requests_at_once_cost_one_generation():
    service = Service()
    service.gate.clear()
    asked = [asyncio.create_task(service.ask(user=str(number))) for number in range(1000)]
    await service.begun.wait()
    await turns()
    service.gate.set()
    answers = await asyncio.gather(*asked)
    assert service.count == 1
    assert {(a.status_code, content(a)) for a in answers} == {(200, "answer 1")}
    assert sorted(said(a) for a in answers) == ["miss", *["shared"] * 999]
    assert len({a.json()["id"] for a in answers}) == 1000


async def test_requests_that_differ_are_computed_each():
    service = Service()
    answers = await asyncio.gather(*(service.ask(max_tokens=number) for number in range(1, 9)))
    assert len({content(answer) for answer in answers}) == service.count == 8


async def test_no_store_neither_reads_nor_keeps():
    service = Service()
    no_store = {"cache-control": "max-age=3, No-Store"}
    assert said(await service.ask(headers=no_store)) == "bypass"
    assert said(await service.ask()) == "miss"
    assert said(await service.ask(headers=no_store)) == "bypass"
    assert service.count == 3


async def test_no_cache_computes_anew_and_keeps():
    service = Service()
    await service.ask()
    anew = await service.ask(headers={"cache-control": "no-cache"})
    kept = await service.ask()
    assert [content(anew), content(kept)] == ["answer 2", "answer 2"]
    assert [said(anew), said(kept)] == ["miss", "hit"]


@pytest.mark.parametrize("status", [400, 404, 429, 500, 503])
async def test_an_error_is_shared_by_those_who_waited_and_not_kept(status: int):
    service = Service()
    service.status = status
    service.gate.clear()
    asked = [asyncio.create_task(service.ask()) for _ in range(5)]
    await service.begun.wait()
    await turns()
    service.gate.set()
    answers = await asyncio.gather(*asked)
    assert [a.status_code for a in answers] == [status] * 5
    assert {(a.json()["error"]["message"], a.headers["retry-after"]) for a in answers} == {("no", "3")}
    service.status = 200
    assert (said(await service.ask()), service.count) == ("miss", 2)


async def test_an_app_that_breaks_is_an_error_for_all_and_not_kept():
    service = Service()
    service.is_broken = True
    service.gate.clear()
    asked = [asyncio.create_task(service.ask()) for _ in range(5)]
    await service.begun.wait()
    await turns()
    service.gate.set()
    assert [a.status_code for a in await asyncio.gather(*asked)] == [500] * 5
    service.is_broken = False
    assert content(await service.ask()) == "answer 2"


async def test_who_came_first_may_leave_and_the_others_get_the_answer():
    service = Service()
    service.gate.clear()
    leader = asyncio.create_task(service.ask())
    await service.begun.wait()
    others = [asyncio.create_task(service.ask()) for _ in range(3)]
    await turns()
    leader.cancel()
    await turns()
    service.gate.set()
    answers = await asyncio.gather(*others)
    assert [content(a) for a in answers] == ["answer 1"] * 3
    assert (service.count, service.num_aborted) == (1, 0)


async def test_when_all_have_left_the_computation_is_aborted_and_the_next_one_starts_anew():
    service = Service()
    service.gate.clear()
    asked = [asyncio.create_task(service.ask()) for _ in range(3)]
    await service.begun.wait()
    await turns()
    for one in asked:
        one.cancel()
    late = asyncio.create_task(service.ask())  # before the abort has come through
    await turns()
    assert service.num_aborted == 1
    service.gate.set()
    assert (content(await late), service.count) == ("answer 2", 2)


async def test_a_client_that_disconnects_while_it_waits_ends_its_computation():
    service = Service()
    service.gate.clear()
    sent: list[Any] = []
    messages = iter([{"type": "http.request", "body": json.dumps(BODY).encode()}])

    async def receive() -> Any:
        if (message := next(messages, None)) is not None:
            return message
        await service.begun.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": CHAT, "root_path": "", "headers": [], "query_string": b""}
    await service.cache(scope, receive, send)
    await turns()
    assert (sent, service.num_aborted) == ([], 1)


async def test_a_stream_is_made_of_a_kept_answer():
    service = Service()
    await service.ask()
    streamed = await service.ask(stream=True, stream_options={"include_usage": True})
    assert (said(streamed), service.count) == ("hit", 1)
    assert streamed.headers["content-type"].startswith("text/event-stream")
    *lines, done, _ = streamed.text.split("\n\n")
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines]
    assert done == "data: [DONE]"
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks if c["choices"]) == "answer 1"
    assert chunks[-1]["usage"]["completion_tokens"] == 2


async def test_a_stream_that_is_computed_is_passed_on_and_not_kept():
    service = Service()
    first, second = await service.ask(stream=True), await service.ask(stream=True)
    assert [said(first), said(second), service.count] == ["miss", "miss", 2]
    assert first.text.endswith("data: [DONE]\n\n")


async def test_drawn_answers_and_other_paths_pass_by():
    service = Service()
    for _ in range(2):
        assert said(await service.ask(temperature=0.5)) == "bypass"
    models = await service.client.get("/v1/models")
    assert (service.count, models.status_code, "x-manta-cache" in models.headers) == (2, 200, False)


async def test_embeddings_are_kept():
    service = Service()
    answers = [await service.ask(EMBEDDINGS, input="Hello") for _ in range(2)]
    assert [said(a) for a in answers] == ["miss", "hit"]
    assert answers[0].json()["data"] == answers[1].json()["data"]


async def test_a_body_in_pieces_and_one_too_long_reach_the_app_whole(monkeypatch: pytest.MonkeyPatch):
    service = Service()
    body = json.dumps(BODY).encode()

    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(body), 7):
            yield body[at : at + 7]

    assert content(await service.client.post(CHAT, content=pieces())) == "answer 1"
    assert said(await service.ask()) == "hit"
    monkeypatch.setattr("serve.middleware.cache._MAX_BODY_BYTES", 20)
    long = await service.client.post(CHAT, content=pieces())
    assert (said(long), content(long)) == ("bypass", "answer 2")


@pytest.mark.parametrize("per_key,statuses", [(True, ["miss", "miss", "hit"]), (False, ["miss", "hit", "hit"])])
async def test_api_keys_share_answers_only_where_that_is_configured(per_key: bool, statuses: list[str]):
    names = iter(["one", "other", "one"])

    def with_key(app: Any) -> Any:
        async def call(scope: Any, receive: Any, send: Any) -> None:
            await app({**scope, "manta": {"key": next(names)}}, receive, send)

        return call

    service = Service(with_key, per_key=per_key)
    assert [said(await service.ask()) for _ in range(3)] == statuses


async def test_what_is_no_answer_in_the_store_is_a_miss():
    service = Service()

    class Spoilt(MemoryStore):
        async def get(self, key: str) -> bytes | None:
            return b"\x01{}"

    spoilt = Service(store=Spoilt(service.spec))
    assert (said(await spoilt.ask()), spoilt.count) == ("miss", 1)


async def test_a_batch_jobs_answers_warm_the_cache():
    service = Service()
    sampling = SamplingSpec(max_tokens=8)
    asked = chat_request("demo", BODY["messages"], sampling)
    sample = Sample(text="from the batch", finish_reason="stop", completion_tokens=3)
    answered = chat_body(request_id="1", created=1, model="demo", samples=[sample], prompt_tokens=3)
    assert await warm(service.store, [(CHAT, asked, answered)], fingerprint="f") == 1
    answer = await service.ask()
    assert (said(answer), content(answer), service.count) == ("hit", "from the batch", 0)
    with pytest.raises(ValueError, match=r"sampling\.choice"):
        chat_request("demo", BODY["messages"], SamplingSpec(choice=["a"]))


async def test_a_cache_that_is_off_says_and_keeps_nothing():
    service = Service()
    service.cache = Cache(service.cache.app, CacheSpec(), "f")
    service.client = httpx.AsyncClient(transport=httpx.ASGITransport(service.cache), base_url="http://test")
    answers = [await service.ask() for _ in range(2)]
    assert [content(a) for a in answers] == ["answer 1", "answer 2"]
    assert not any("x-manta-cache" in a.headers for a in answers)
