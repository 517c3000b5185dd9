"""An embedding model over a real socket that knows few texts, and can be told to misbehave."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer

VECTORS = {
    "Where is my parcel?": [1.0, 0.0, 0.0],
    "My parcel, where is it?": [0.99, 0.141067, 0.0],  # a cosine of 0.99 with the one above
    "When do you open?": [0.0, 0.0, 2.0],
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Answered:
    """What it says to whatever it is asked."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


class StubEmbedder:
    """Texts that it does not know point somewhere else."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.answer: Answered | None = None
        self.is_hanging = False
        self.url = ""

    async def embed(self, request: web.Request) -> web.Response:
        asked = await request.json()
        self.asked.append(asked)
        self.keys.append(request.headers.get("authorization"))
        if self.is_hanging:
            await asyncio.Event().wait()
        if self.answer is not None:
            return web.Response(body=self.answer.body, status=self.answer.status, headers=self.answer.headers)
        vectors = [VECTORS.get(text, [0.0, 1.0, 0.0]) for text in asked["input"]]
        return web.json_response({"object": "list", "data": [{"index": 0, "embedding": vector} for vector in vectors]})


@asynccontextmanager
async def running() -> AsyncIterator[StubEmbedder]:
    """Starts one on a free port."""
    stub = StubEmbedder()
    app = web.Application()
    app.router.add_post("/v1/embeddings", stub.embed)
    server = TestServer(app)
    await server.start_server(shutdown_timeout=0.1)
    stub.url = str(server.make_url("/v1/embeddings"))
    try:
        yield stub
    finally:
        await server.close()
