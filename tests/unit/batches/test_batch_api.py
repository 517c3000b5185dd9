"""/v1/files and /v1/batches by OpenAI's client, behind the keys."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import pytest_asyncio

from conf.schema.access import AccessSpec
from conf.schema.batches import BatchesSpec
from serve.batches.layer import Batches
from serve.batches.records import Kind
from serve.batches.shelf import Shelf
from serve.keyring import KeyRing
from serve.keys import Key
from serve.middleware.access import Access
from serve.middleware.answer import Receive, Scope, Send, answer
from serve.middleware.body import FORM_BYTES
from serve.middleware.routes import FILES, Routes

LINE = b'{"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"model": "demo"}}\n'
NAMED = (
    b'--b\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
    b'--b\r\ncontent-disposition: form-data; name="file"; filename="a\x7fb"\r\n\r\nx\r\n--b--\r\n'
)
ASK: dict[str, Any] = {"endpoint": "/v1/completions", "completion_window": "24h"}
SPEC = {"max_file_bytes": 1000, "max_bytes_per_key": 1500, "max_open_per_key": 2, "max_upload_s": 0.5}


async def inner(scope: Scope, receive: Receive, send: Send) -> None:
    await answer(send, 200, b"inner")


async def is_ready() -> bool:
    return True


def key(name: str) -> Key:
    return Key(id=name, name=name, sha256=hashlib.sha256(name.encode()).hexdigest(), created=datetime.now(UTC))


@pytest.fixture
def transport(tmp_path: Path) -> httpx.ASGITransport:
    spec = BatchesSpec(path=str(tmp_path / "kept"), **SPEC)  # type: ignore[arg-type]
    keys = KeyRing(tmp_path / "no-keys", [key("one"), key("two")])
    access = AccessSpec(max_body_bytes=500)
    app = Access(Batches(inner, spec), access, keys, uploads={FILES: spec.max_file_bytes + FORM_BYTES})
    return httpx.ASGITransport(Routes(app, is_ready, has_batches=True))  # type: ignore[arg-type]


@pytest_asyncio.fixture
async def client(transport: httpx.ASGITransport) -> AsyncIterator[openai.AsyncOpenAI]:
    yield named("one", transport)


def named(name: str, transport: httpx.ASGITransport) -> openai.AsyncOpenAI:
    http = httpx.AsyncClient(transport=transport, base_url="http://x")
    return openai.AsyncOpenAI(api_key=name, base_url="http://x/v1", http_client=http, max_retries=0)


async def upload(client: openai.AsyncOpenAI, content: bytes = LINE, name: str = "in.jsonl") -> str:
    return (await client.files.create(file=(name, content), purpose="batch")).id


async def test_a_file_comes_back_as_it_was_sent(client: openai.AsyncOpenAI):
    name = await upload(client, LINE * 3, "in ünd.jsonl")
    found = await client.files.retrieve(name)
    assert (found.bytes, found.filename, found.purpose) == (len(LINE) * 3, "in ünd.jsonl", "batch")
    assert (await client.files.content(name)).content == LINE * 3
    assert [file.id async for file in await client.files.list()] == [name]
    assert [file.id async for file in await client.files.list(purpose="other")] == []
    assert (await client.files.delete(name)).deleted
    with pytest.raises(openai.NotFoundError):
        await client.files.content(name)


async def test_a_batch_waits_is_listed_and_cancelled(client: openai.AsyncOpenAI):
    source = await upload(client)
    made = [await client.batches.create(input_file_id=source, metadata={"n": "1"}, **ASK) for _ in range(2)]
    assert made[0].status == "validating"
    assert made[0].metadata == {"n": "1"}
    assert made[0].expires_at == made[0].created_at + 86400
    assert await client.batches.retrieve(made[0].id) == made[0]
    assert [batch.id async for batch in await client.batches.list(limit=1)] == [made[1].id, made[0].id]
    cancelled = await client.batches.cancel(made[0].id)
    assert cancelled.status == "cancelling"
    assert cancelled.cancelling_at
    assert (await client.batches.cancel(made[0].id)).cancelling_at == cancelled.cancelling_at


async def test_one_key_sees_nothing_of_another(client: openai.AsyncOpenAI, transport: httpx.ASGITransport):
    source = await upload(client)
    batch = await client.batches.create(input_file_id=source, **ASK)
    other = named("two", transport)
    for ask in (other.files.retrieve, other.files.content, other.files.delete):
        with pytest.raises(openai.NotFoundError):
            await ask(source)
    for ask in (other.batches.retrieve, other.batches.cancel):
        with pytest.raises(openai.NotFoundError):
            await ask(batch.id)
    with pytest.raises(openai.BadRequestError):
        await other.batches.create(input_file_id=source, **ASK)
    assert not (await other.files.list()).data
    assert not (await other.batches.list()).data
    with pytest.raises(openai.AuthenticationError):
        await named("nobody", transport).files.list()


async def test_what_is_too_much_is_refused(client: openai.AsyncOpenAI, tmp_path: Path):
    with pytest.raises(openai.APIStatusError) as refused:
        await upload(client, b"x" * 1001)
    assert refused.value.status_code == 413
    with pytest.raises(openai.APIStatusError) as refused:
        await upload(client, b"x" * 100_000)
    assert refused.value.status_code == 413
    source = await upload(client, b"x" * 1000)
    with pytest.raises(openai.APIStatusError) as refused:
        await upload(client, b"x" * 501)
    assert (refused.value.status_code, refused.value.code) == (413, "no_room")
    for _ in range(2):
        await client.batches.create(input_file_id=source, **ASK)
    with pytest.raises(openai.RateLimitError) as full:
        await client.batches.create(input_file_id=source, **ASK)
    assert full.value.code == "too_many_batches"
    assert len(list((tmp_path / "kept" / "files").iterdir())) == 1


async def test_an_answer_is_no_input_of_a_batch(client: openai.AsyncOpenAI, tmp_path: Path):
    source = await upload(client)
    Shelf(tmp_path / "kept").records.change(source, lambda now: {**now, "purpose": "batch_output"})
    with pytest.raises(openai.BadRequestError):
        await client.batches.create(input_file_id=source, **ASK)


@pytest.mark.parametrize(
    "method, path, options, status",
    [
        ("POST", "/v1/files", {"json": {}}, 415),
        ("POST", "/v1/files", {"files": {"file": b"x"}, "data": {"purpose": "fine-tune"}}, 400),
        ("POST", "/v1/files", {"files": {"other": b"x"}, "data": {"purpose": "batch"}}, 400),
        ("POST", "/v1/files", {"content": NAMED, "headers": {"content-type": "multipart/form-data; boundary=b"}}, 400),
        ("POST", "/v1/files", {"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 400),
        ("POST", "/v1/files", {"content": b"x", "headers": {"content-type": "multipart/form-data; boundary=b"}}, 400),
        ("PUT", "/v1/files", {"json": {}}, 405),
        ("GET", "/v1/files/x", {}, 404),
        ("GET", "/v1/files/..%2frecords.sqlite/content", {}, 404),
        ("GET", "/v1/files/x/y", {}, 404),
        ("GET", "/v1/files?limit=0", {}, 400),
        ("GET", "/v1/files?limit=99999999999999999999", {}, 400),
        ("GET", "/v1/files?limit=0000015000000", {}, 400),
        ("GET", "/v1/files?limit=x", {}, 400),
        ("GET", "/v1/files?order=up", {}, 400),
        ("GET", "/v1/files?after=file-x", {}, 400),
        ("GET", "/v1/batches?limit=101", {}, 400),
        ("POST", "/v1/batches", {}, 400),
        ("POST", "/v1/batches", {"json": [1]}, 400),
        ("POST", "/v1/batches", {"json": {"input_file_id": "file-1", **ASK}}, 400),
        ("POST", "/v1/batches/batch_1/cancel", {}, 404),
        ("POST", "/v1/batches", {"files": {"file": b"x"}}, 415),
    ],
)
async def test_bad_requests_get_an_error_in_openais_shape(
    transport: httpx.ASGITransport, method: str, path: str, options: dict, status: int
):
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        headers = {"authorization": "Bearer one", **options.pop("headers", {})}
        found = await client.request(method, path, headers=headers, **options)
    assert found.status_code == status, found.text
    assert set(found.json()["error"]) == {"message", "type", "param", "code"}


async def test_a_file_that_comes_too_slowly_is_given_up(transport: httpx.ASGITransport, tmp_path: Path):
    import asyncio

    async def slow() -> AsyncIterator[bytes]:
        yield b'--b\r\ncontent-disposition: form-data; name="file"; filename="x"\r\n\r\n'
        await asyncio.sleep(30)
        yield b"x"

    async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        headers = {"authorization": "Bearer one", "content-type": "multipart/form-data; boundary=b"}
        found = await client.post("/v1/files", content=slow(), headers=headers)
    assert found.status_code == 408
    assert not list((tmp_path / "kept" / "files").iterdir())


async def test_other_paths_go_on_to_the_engine(transport: httpx.ASGITransport):
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        found = await client.get("/v1/models", headers={"authorization": "Bearer one"})
    assert found.text == "inner"


def test_what_is_kept_is_found_by_the_runner(tmp_path: Path):
    assert Shelf(tmp_path).records.labelled(Kind.batch, ("validating",)) == []
