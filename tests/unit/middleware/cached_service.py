"""A service behind a cache."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from conf.schema.cache import CacheKind, CacheSpec
from pipelines.batch.openai_response import chat_body
from serve.cache.store import MemoryStore, Store
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
