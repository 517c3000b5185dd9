"""Asks an embedding model for a text's vector. What it answers is not trusted, and its failure is nobody's else."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from conf.schema.cache import CacheSpec
from serve.cache.index import Vector
from serve.cache.rest import Rest

if TYPE_CHECKING:
    from aiohttp import ClientSession

_MAX_DIMS = 8192
_MAX_BYTES = 32 * _MAX_DIMS
"""Of an answer; a number takes 20 characters at most, and the rest is a few hundred."""


class _Embedding(msgspec.Struct):
    embedding: list[float]


class _Answer(msgspec.Struct):
    data: list[_Embedding]


_decoder = msgspec.json.Decoder(_Answer)


class Embedder:
    """An OpenAI-compatible endpoint. Belongs to the event loop that first uses it.

    Every call is bounded by ``cache.semantic.timeout_s``. After three failures in a row the endpoint is left alone for
    ``cache.retry_after_s``: calls return at once.
    """

    def __init__(self, spec: CacheSpec, clock: Callable[[], float] = time.monotonic) -> None:
        """Takes the configuration; the key comes from the environment variable MANTA_EMBEDDING_KEY."""
        self._spec, self._own = spec, spec.semantic
        self._rest = Rest("the cache's embedding model", spec.retry_after_s, clock)
        key = os.environ.get("MANTA_EMBEDDING_KEY")
        self._headers = {"content-type": "application/json", "accept-encoding": "identity"}
        self._headers |= {"authorization": f"Bearer {key}"} if key else {}
        self._session: ClientSession | None = None

    async def embed(self, text: str) -> Vector | None:
        """Returns the text's direction, a vector of length 1; null where there is none in time."""
        if self._rest.is_on:
            return None
        try:
            async with asyncio.timeout(self._own.timeout_s):
                vector = _vector(await self._ask(text))
        except Exception as error:  # whatever is wrong with it, requests go on
            self._rest.failed(error)
            return None
        self._rest.succeeded()
        return vector

    async def close(self) -> None:
        """Lets go of connections. Harmless when called twice."""
        if self._session is not None:
            await self._session.close()

    async def _ask(self, text: str) -> bytes:
        # here, for most services run without: 150 ms
        from aiohttp import ClientSession, DummyCookieJar, TCPConnector

        if self._session is None:
            connections = TCPConnector(limit=self._spec.max_connections)
            # what is packed could be of any size when it is unpacked
            self._session = ClientSession(
                connector=connections, headers=self._headers, cookie_jar=DummyCookieJar(), auto_decompress=False
            )
        asked = msgspec.json.encode({"model": self._own.model, "input": [text], "encoding_format": "float"})
        async with self._session.post(self._own.url, data=asked, allow_redirects=False) as answered:
            if answered.status != 200:
                raise ValueError(f"status {answered.status}")
            body = bytearray()
            async for chunk in answered.content.iter_any():
                body += chunk
                if len(body) > _MAX_BYTES:
                    raise ValueError("an answer that is too long")
        return bytes(body)


def _vector(body: bytes) -> Vector:
    """Reads an answer.

    Raises:
        ValueError: when it is no answer, or holds no direction.
    """
    found = _decoder.decode(body).data
    if len(found) != 1 or not 1 <= len(found[0].embedding) <= _MAX_DIMS:
        raise ValueError("not one vector")
    numbers = np.array(found[0].embedding, np.float64)
    largest = np.abs(numbers).max()
    if not 0 < largest < float("inf"):
        raise ValueError("no direction")
    numbers /= largest  # squares of numbers near the ends of float64 are none
    return (numbers / np.linalg.norm(numbers)).astype(np.float32)
