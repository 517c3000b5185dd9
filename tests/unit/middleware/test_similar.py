from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import httpx
import pytest

from conf.schema.cache import CacheKind, CacheSpec
from conf.schema.semantic import SemanticSpec
from pipelines.batch.openai_response import chat_body
from serve.cache.store import MemoryStore
from serve.engine.protocol import Sample
from serve.middleware.cache import Cache
from tests.unit.cache.stub_embedder import StubEmbedder, running

CHAT = "/v1/chat/completions"
WHERE, WORDED, OTHER = "Where is my parcel?", "My parcel, where is it?", "When do you open?"
Said = tuple[str, str]


@pytest.fixture
async def stub() -> AsyncIterator[StubEmbedder]:
    async with running() as stub:
        yield stub


class Service:
    """An app that numbers its answers, behind the cache; each waits for `gate`."""

    def __init__(self, stub: StubEmbedder, *, per_key: bool = True, **own: Any) -> None:
        semantic = SemanticSpec(enabled=True, **{"url": stub.url, "timeout_s": 5.0, **own})
        self.spec = CacheSpec(kind=CacheKind.memory, per_key=per_key, semantic=semantic)
        self.store = MemoryStore(self.spec)
        self.cache = Cache(self.app, self.spec, "f", self.store)
        self.count, self.key, self.finish_reason = 0, "one", "stop"
        self.gate, self.begun = asyncio.Event(), asyncio.Event()
        self.gate.set()
        self.client = httpx.AsyncClient(transport=httpx.ASGITransport(self.with_key), base_url="http://test")

    async def __aenter__(self) -> Service:
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self.cache._similar is not None
        await self.cache._similar.embedder.close()

    async def with_key(self, scope: Any, receive: Any, send: Any) -> None:
        manta: dict[str, Any] = {"key": self.key}
        await self.cache({**scope, "manta": manta}, receive, send)
        self.noted = manta["cache"]

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        asked = json.loads((await receive())["body"])
        self.count += 1
        text = f"answer {self.count}"
        self.begun.set()
        await self.gate.wait()
        sample = Sample(text=text, finish_reason=self.finish_reason, completion_tokens=2)
        body = json.dumps(
            chat_body(request_id="1", created=7, model="demo", samples=[sample], prompt_tokens=3)
        ).encode()
        kind = b"application/json"
        if asked.get("stream"):
            kind, body = b"text/event-stream", b'data: {"choices":[]}\n\ndata: [DONE]\n\n'
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]})
        await send({"type": "http.response.body", "body": body})

    async def ask(self, text: str, headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
        body = {"model": "demo", "messages": [{"role": "user", "content": text}], "temperature": 0, **fields}
        return await self.client.post(CHAT, json=body, headers=headers)

    async def said(self, text: str, headers: dict[str, str] | None = None, **fields: Any) -> Said:
        """What the cache says, and the answer's text."""
        answer = await self.ask(text, headers, **fields)
        assert answer.status_code == 200
        assert answer.headers["x-manta-cache"] == self.noted
        return answer.headers["x-manta-cache"], answer.json()["choices"][0]["message"]["content"]


async def test_another_wording_gets_the_answer_and_another_question_its_own(stub: StubEmbedder):
    async with Service(stub, threshold=0.95) as service:
        assert await service.said(WHERE) == ("miss", "answer 1")
        similar = await service.ask(WORDED)
        assert similar.headers["x-manta-cache"] == service.noted == "similar"
        assert similar.headers["x-manta-cache-similarity"] == "0.9900"
        assert similar.headers["content-type"] == "application/json"
        assert similar.json()["choices"][0]["message"]["content"] == "answer 1"
        assert similar.json()["id"] != "1"
        assert await service.said(OTHER) == ("miss", "answer 2")
        assert await service.said(WHERE) == ("hit", "answer 1")  # an equal one needs no embedding
        assert [asked["input"] for asked in stub.asked] == [[WHERE], [WORDED], [OTHER]]


async def test_below_the_threshold_is_computed(stub: StubEmbedder):
    async with Service(stub, threshold=0.991) as service:
        assert [await service.said(text) for text in (WHERE, WORDED)] == [("miss", "answer 1"), ("miss", "answer 2")]


async def test_a_similar_answer_is_never_kept_as_an_equal_ones(stub: StubEmbedder):
    async with Service(stub) as service:
        await service.ask(WHERE)
        assert [(await service.said(WORDED))[0] for _ in range(2)] == ["similar", "similar"]
        assert await service.said(WORDED, {"x-manta-cache-match": "exact"}) == ("miss", "answer 2")
        assert await service.said(WORDED) == ("hit", "answer 2")


async def test_who_wants_exact_answers_gets_none_else_and_gives_none(stub: StubEmbedder):
    async with Service(stub) as service:
        exact = {"x-manta-cache-match": "Exact"}
        assert await service.said(WHERE, exact) == ("miss", "answer 1")
        assert await service.said(WORDED) == ("miss", "answer 2")
        assert await service.said(WHERE, exact) == ("hit", "answer 1")
        assert len(stub.asked) == 1


@pytest.mark.parametrize("control,says", [("no-store", "bypass"), ("no-cache", "miss")])
async def test_cache_control_refuses_similar_answers(stub: StubEmbedder, control: str, says: str):
    async with Service(stub) as service:
        await service.ask(WHERE)
        assert await service.said(WORDED, {"cache-control": control}) == (says, "answer 2")


@pytest.mark.parametrize("per_key,says", [(True, "miss"), (False, "similar")])
async def test_api_keys_share_no_wording_unless_they_share_answers(stub: StubEmbedder, per_key: bool, says: str):
    async with Service(stub, per_key=per_key) as service:
        await service.ask(WHERE)
        service.key = "other"
        assert (await service.said(WORDED))[0] == says


@pytest.mark.parametrize("fields", [{"max_tokens": 5}, {"model": "other"}, {"stop": ["x"]}])
async def test_all_else_must_be_equal(stub: StubEmbedder, fields: dict[str, Any]):
    async with Service(stub) as service:
        await service.ask(WHERE)
        assert await service.said(WORDED, **fields) == ("miss", "answer 2")


@pytest.mark.parametrize("fields", [{"temperature": 1}, {"tools": [{"type": "function"}]}])
async def test_drawn_answers_and_tools_are_not_looked_up(stub: StubEmbedder, fields: dict[str, Any]):
    async with Service(stub) as service:
        for text in (WHERE, WORDED):
            await service.ask(text, **fields)
        assert (service.count, stub.asked) == (2, [])


async def test_other_numbers_are_another_question_however_near(stub: StubEmbedder):
    async with Service(stub) as service:  # the stub gives all unknown texts one vector
        assert await service.said("Cancel order 5") == ("miss", "answer 1")
        assert await service.said("Cancel order 6") == ("miss", "answer 2")
        assert await service.said("Please cancel order 6") == ("similar", "answer 2")


async def test_a_stream_is_made_of_a_similar_answer_and_one_that_is_computed_is_passed_on(stub: StubEmbedder):
    async with Service(stub) as service:
        computed = await service.ask(WHERE, stream=True)
        assert (computed.headers["x-manta-cache"], computed.text[-14:]) == ("miss", "data: [DONE]\n\n")
        await service.ask(WHERE)
        similar = await service.ask(WORDED, stream=True)
        assert similar.headers["x-manta-cache"] == "similar"
        assert similar.headers["content-type"].startswith("text/event-stream")
        assert "answer 2" in similar.text


async def test_equal_requests_at_once_cost_one_embedding_and_one_generation(stub: StubEmbedder):
    async with Service(stub) as service:
        service.gate.clear()
        asked = [asyncio.create_task(service.ask(WHERE)) for _ in range(50)]
        await service.begun.wait()
        exact = asyncio.create_task(service.ask(WHERE, {"x-manta-cache-match": "exact"}))
        while service.count < 2:  # it joins none of those who might get a similar answer
            await asyncio.sleep(0)
        service.gate.set()
        says = [answer.headers["x-manta-cache"] for answer in await asyncio.gather(*asked)]
        assert sorted(says) == ["miss", *["shared"] * 49]
        assert ((await exact).headers["x-manta-cache"], len(stub.asked)) == ("miss", 1)


async def test_all_who_wait_for_a_similar_answer_are_told_so(stub: StubEmbedder):
    async with Service(stub) as service:
        await service.ask(WHERE)
        answers = await asyncio.gather(*(service.ask(WORDED) for _ in range(20)))
        told = {(a.headers["x-manta-cache"], a.headers["x-manta-cache-similarity"]) for a in answers}
        assert (told, len(stub.asked), service.count) == ({("similar", "0.9900")}, 2, 1)
        assert len({answer.json()["id"] for answer in answers}) == 20


async def test_an_answer_that_is_gone_is_computed_anew_and_found_again(stub: StubEmbedder):
    async with Service(stub) as service:
        await service.ask(WHERE)
        await service.store.close()  # forgets everything
        assert await service.said(WORDED) == ("miss", "answer 2")
        assert await service.said(WHERE) == ("similar", "answer 2")


async def test_an_answer_that_is_not_whole_is_given_to_nobody(stub: StubEmbedder):
    async with Service(stub) as service:
        service.finish_reason = "abort"
        await service.ask(WHERE)
        assert (await service.said(WORDED))[0] == "miss"


async def failures(stub: StubEmbedder, texts: Sequence[str]) -> list[str]:
    async with Service(stub, timeout_s=0.05) as service:
        return [(await service.said(text))[0] for text in texts]


async def test_an_embedder_that_hangs_fails_no_request(stub: StubEmbedder):
    stub.is_hanging = True
    assert await failures(stub, [WHERE, WORDED, WHERE]) == ["miss", "miss", "hit"]


async def test_nobody_there_fails_no_request(stub: StubEmbedder):
    stub.url = "http://127.0.0.1:1/v1/embeddings"
    assert await failures(stub, [WHERE, WORDED, WHERE]) == ["miss", "miss", "hit"]
