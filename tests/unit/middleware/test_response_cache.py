from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from cached_service import BODY, CHAT, EMBEDDINGS, Service, content, said, turns

from conf.schema.cache import CacheSpec
from conf.schema.sampling import SamplingSpec
from pipelines.batch.openai_response import chat_body
from serve.cache.store import MemoryStore
from serve.cache.warm import chat_request, warm
from serve.engine.protocol import Sample
from serve.middleware.cache import Cache


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
