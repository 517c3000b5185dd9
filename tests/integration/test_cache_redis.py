from __future__ import annotations

import asyncio
import logging
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis_server import RedisServer, redis_server
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from conf.schema.cache import CacheKind, CacheSpec
from serve.cache.reach import unreached
from serve.cache.store import RedisStore, Store, build_store
from serve.middleware.cache import Cache

pytestmark = pytest.mark.redis

PATH = "/v1/embeddings"
KEY, OTHER = "a" * 64, "b" * 64


@pytest.fixture
def server() -> Iterator[RedisServer]:
    # not pytest's folder: a socket's path has at most 107 characters
    with tempfile.TemporaryDirectory(prefix="redis-") as folder, redis_server(Path(folder)) as running:
        yield running


def spec(**values: Any) -> CacheSpec:
    return CacheSpec(**{"kind": CacheKind.redis, "timeout_s": 1.0, **values})


@pytest.fixture
async def store(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Store]:
    monkeypatch.setenv("MANTA_REDIS_URL", server.url)
    built = build_store(spec(timeout_s=10.0))
    assert isinstance(built, RedisStore)
    yield built
    await built.close()


def service(store: Store, values: CacheSpec) -> tuple[httpx.AsyncClient, list[Any]]:
    """A service of one replica, and what it has computed."""
    computed: list[Any] = []

    async def embed(request: Request) -> JSONResponse:
        computed.append((await request.json())["input"])
        data = [{"object": "embedding", "index": 0, "embedding": [0.5, len(computed)]}]
        return JSONResponse({"object": "list", "data": data, "model": "m", "usage": {"prompt_tokens": 1}})

    app = Cache(Starlette(routes=[Route(PATH, embed, methods=["POST"])]), values, "f", store)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test"), computed


async def test_replicas_share_answers(store: Store, server: RedisServer):
    other = RedisStore(spec(timeout_s=10.0), server.url)
    (one, first), (two, second) = service(store, spec()), service(other, spec())
    mine = await one.post(PATH, json={"input": "Hello"})
    while (await one.post(PATH, json={"input": "Hello"})).headers["x-manta-cache"] == "shared":  # until it is kept
        pass
    others = await two.post(PATH, json={"input": "Hello"})
    assert [a.headers["x-manta-cache"] for a in (mine, others)] == ["miss", "hit"]
    assert mine.json()["data"] == others.json()["data"]
    assert (first, second) == (["Hello"], [])
    await other.close()


async def test_an_entry_is_bytes_with_an_end_of_life_under_a_key_of_ours(store: Store, server: RedisServer):
    from redis.asyncio import Redis

    assert await store.get(KEY) is None
    await store.put(KEY, b"\x01{}")
    assert await store.get(KEY) == b"\x01{}"
    async with Redis.from_url(server.url) as redis:
        assert await redis.keys() == [b"manta:1:" + KEY.encode()]
        assert 3590 < await redis.ttl(b"manta:1:" + KEY.encode()) <= 3600


async def test_an_entry_ends_after_its_time(server: RedisServer):
    from redis.asyncio import Redis

    store = RedisStore(spec(ttl_s=0.001, timeout_s=10.0), server.url)
    await store.put(KEY, b"\x01{}")
    async with Redis.from_url(server.url) as redis:
        while await redis.exists(b"manta:1:" + KEY.encode()):
            await asyncio.sleep(0)
    assert await store.get(KEY) is None
    await store.close()


@pytest.mark.parametrize(
    "value",
    [b"", b"x", b"x" * 5_000_000, OTHER.encode() + b"\x01{}", KEY.encode(), b"\x80\x04\x95."],
    ids=["empty", "short", "huge", "of another key", "key alone", "pickle"],
)
async def test_what_others_have_put_there_is_not_taken(store: Store, server: RedisServer, value: bytes):
    from redis.asyncio import Redis

    async with Redis.from_url(server.url) as redis:
        await redis.set(b"manta:1:" + KEY.encode(), value)
        assert await store.get(KEY) is None
        await redis.delete(b"manta:1:" + KEY.encode())
        await redis.lpush(b"manta:1:" + KEY.encode(), "a list")
        assert await store.get(KEY) is None


async def test_a_long_entry_is_not_sent(server: RedisServer):
    store = RedisStore(spec(max_entry_bytes=10, timeout_s=10.0), server.url)
    await store.put(KEY, b"x" * 11)
    await store.put(OTHER, b"x" * 10)
    assert (await store.get(KEY), await store.get(OTHER)) == (None, b"x" * 10)
    await store.close()


async def test_a_request_that_is_given_up_leaves_no_answer_for_the_next(server: RedisServer):
    """One answer late on a shared connection would hand everybody another's: it has happened to others."""
    store = RedisStore(spec(timeout_s=2.0), server.url)
    await store.put(KEY, b"\x01one")
    await store.put(OTHER, b"\x01other")
    for _ in range(20):
        await asyncio.gather(*(store.get(OTHER) for _ in range(4)))  # connections are open
        server.hold()
        given_up = [asyncio.create_task(store.get(KEY)) for _ in range(4)]
        for _ in range(20):  # the question is on its way
            await asyncio.sleep(0)
        for one in given_up:
            one.cancel()
        await asyncio.gather(*given_up, return_exceptions=True)
        server.go_on()
        assert await asyncio.gather(*(store.get(OTHER) for _ in range(4))) == [b"\x01other"] * 4
    await store.close()


async def test_requests_go_on_when_redis_dies_and_find_it_again(server: RedisServer, caplog: pytest.LogCaptureFixture):
    now = [0.0]
    store = RedisStore(spec(retry_after_s=5.0), server.url, clock=lambda: now[0])
    client, computed = service(store, spec())

    async def ask(text: str) -> str:
        answer = await client.post(PATH, json={"input": text})
        assert answer.status_code == 200
        return answer.headers["x-manta-cache"]

    assert await ask("a") == "miss"
    while await ask("a") == "shared":  # until it is kept
        pass
    assert await ask("a") == "hit"
    server.kill()
    with caplog.at_level(logging.WARNING):
        assert [await ask(text) for text in "abcd"] == ["miss"] * 4
    assert "left alone for 5 s" in caplog.text
    assert "redis.sock" not in caplog.text
    server.start()
    assert await ask("e") == "miss"  # it is not asked yet
    now[0] = 5.1
    assert await ask("f") == "miss"
    while await ask("f") == "shared":
        pass
    assert await ask("f") == "hit"
    assert computed == ["a", *"abcdef"]
    await store.close()


async def test_a_redis_that_hangs_costs_the_timeout_three_times_and_then_nothing(server: RedisServer):
    store = RedisStore(spec(timeout_s=0.1, retry_after_s=600.0), server.url)
    await store.put(KEY, b"\x01{}")
    server.hold()
    took = []
    for _ in range(30):
        began = time.monotonic()
        assert await store.get(KEY) is None
        took.append(time.monotonic() - began)
    server.go_on()
    assert min(took[:3]) >= 0.09
    assert sum(took[3:]) < 0.05
    await store.close()


async def test_a_hung_redis_is_not_waited_for_by_a_thousand_at_once(server: RedisServer):
    store = RedisStore(spec(timeout_s=0.2, max_connections=4), server.url)
    server.hold()
    began = time.monotonic()
    assert await asyncio.gather(*(store.get(f"{n:064}") for n in range(1000))) == [None] * 1000
    took = time.monotonic() - began
    server.go_on()
    assert took < 5  # 1,000 / 4 x 0.2 s, were they to wait for one another
    await store.close()


async def test_where_nothing_listens_requests_go_on():
    store = RedisStore(spec(), "redis://127.0.0.1:1/0")
    client, computed = service(store, spec())
    answers = [await client.post(PATH, json={"input": text}) for text in "abc"]
    assert [a.status_code for a in answers] == [200] * 3
    assert computed == ["a", "b", "c"]
    await store.close()


def test_whoever_starts_a_service_hears_of_a_redis_that_is_not_there(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MANTA_REDIS_URL", server.url)
    assert list(unreached(spec())) == []
    monkeypatch.setenv("MANTA_REDIS_URL", "unix://:secret@/nowhere/redis.sock")
    (said,) = unreached(spec())
    assert said.startswith("cache=redis: Redis does not answer here (ConnectionError)")
    assert "secret" not in said
