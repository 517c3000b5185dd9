from __future__ import annotations

import gzip
import json
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest

from conf.schema.cache import CacheKind, CacheSpec
from conf.schema.semantic import SemanticSpec
from serve.cache.embedder import Embedder
from tests.unit.cache.stub_embedder import Answered, StubEmbedder, running


@pytest.fixture
async def stub() -> AsyncIterator[StubEmbedder]:
    async with running() as stub:
        yield stub


class Asker:
    """An embedder with a clock that the test sets."""

    def __init__(self, stub: StubEmbedder, **own: Any) -> None:
        self.now_s = 0.0
        semantic = SemanticSpec(enabled=True, **{"url": stub.url, "timeout_s": 5.0, **own})
        spec = CacheSpec(kind=CacheKind.memory, retry_after_s=4.0, semantic=semantic)
        self.embedder = Embedder(spec, clock=lambda: self.now_s)

    async def __aenter__(self) -> Asker:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.embedder.close()

    async def ask(self) -> list[float] | None:
        vector = await self.embedder.embed("Where is my parcel?")
        return None if vector is None else vector.tolist()


def written(vectors: list[list[Any]]) -> bytes:
    return json.dumps({"data": [{"embedding": vector} for vector in vectors]}).encode()


def answered(vectors: list[list[Any]], status: int = 200) -> Answered:
    return Answered(body=written(vectors), status=status)


async def test_a_text_becomes_a_direction(stub: StubEmbedder, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MANTA_EMBEDDING_KEY", "secret")
    async with Asker(stub, model="mini") as asker:
        stub.answer = answered([[3, -4]])
        assert np.allclose(await asker.ask() or [], [0.6, -0.8])
        assert stub.asked == [{"model": "mini", "input": ["Where is my parcel?"], "encoding_format": "float"}]
        assert stub.keys == ["Bearer secret"]
        stub.answer = answered([[1e300, 1e300]])
        assert np.allclose(await asker.ask() or [], [0.5**0.5] * 2)


BAD = {
    "500": answered([[1, 0]], status=500),
    "elsewhere": Answered(status=307, headers={"location": "http://127.0.0.1:1/"}),
    "no JSON": Answered(body=b"<html>"),
    "no UTF-8": Answered(body=b'{"data": "\xff"}'),
    "another shape": Answered(body=b'{"data": {"embedding": [1]}}'),
    "deep": Answered(body=b"[" * 100_000),
    "packed": Answered(body=gzip.compress(written([[1, 0]])), headers={"content-encoding": "gzip"}),
    "none": answered([]),
    "two": answered([[1, 0], [1, 0]]),
    "no numbers": answered([[]]),
    "text": answered([["1", "2"]]),
    "too many numbers": answered([[1] * 8193]),
    "huge": Answered(body=b'{"data": [{"embedding": [' + b" " * (1 << 20) + b"1]}]}"),
    "zero": answered([[0, 0]]),
    "NaN": Answered(body=b'{"data": [{"embedding": [NaN, 1]}]}'),
    "infinity": Answered(body=b'{"data": [{"embedding": [1e999, 1]}]}'),
}


@pytest.mark.parametrize("name", BAD)
async def test_what_is_no_direction_is_none(stub: StubEmbedder, name: str):
    async with Asker(stub) as asker:
        stub.answer = BAD[name]
        assert await asker.ask() is None
        stub.answer = None
        assert await asker.ask() == [1, 0, 0]


async def test_one_that_does_not_answer_is_waited_for_so_long_and_then_left_alone(
    stub: StubEmbedder, caplog: pytest.LogCaptureFixture
):
    async with Asker(stub, timeout_s=0.05) as asker:
        stub.is_hanging = True
        assert [await asker.ask() for _ in range(4)] == [None] * 4
        assert len(stub.asked) == 3
        assert "left alone for 4 s" in caplog.text
        assert "parcel" not in caplog.text
        assert stub.url not in caplog.text
        asker.now_s = 3.9
        assert await asker.ask() is None
        assert len(stub.asked) == 3


async def test_one_that_has_rested_is_asked_again(stub: StubEmbedder):
    async with Asker(stub) as asker:
        stub.answer = BAD["500"]
        for _ in range(3):
            await asker.ask()
        stub.answer = None
        assert await asker.ask() is None
        asker.now_s = 4.1
        assert await asker.ask() == [1, 0, 0]


async def test_nobody_there_is_no_error(stub: StubEmbedder):
    async with Asker(stub, url="http://127.0.0.1:1/v1/embeddings") as asker:
        assert await asker.ask() is None
