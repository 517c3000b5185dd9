from __future__ import annotations

import asyncio

import httpx

from serve.middleware.answer import Receive, Scope, Send, refuse
from serve.middleware.lost import LEAVE_S, Lost


class Engine:
    """Answers until it dies; then every request fails, and a stream says so and ends."""

    def __init__(self) -> None:
        self.is_dead = False
        self.has_left = asyncio.Event()
        self.died = asyncio.Event()
        self.begun = asyncio.Semaphore(0)

    def die(self) -> None:
        self.is_dead = True
        self.died.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/bad":
            await refuse(send, 500, "a bug")
            return
        if scope["path"] == "/stream":
            await send({"type": "http.response.start", "status": 200, "headers": []})
        self.begun.release()
        await self.died.wait()
        if scope["path"] == "/stream":
            await send({"type": "http.response.body", "body": b"data: error"})
        else:
            await refuse(send, 500, "the engine is dead")


async def test_when_the_engine_dies_streams_end_and_others_wait_for_the_process_to_end():
    engine = Engine()
    app = Lost(engine, lambda: engine.is_dead, engine.has_left.set)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://replica") as client:
        assert (await client.post("/bad")).status_code == 500  # an engine that lives may fail
        whole, stream = (asyncio.create_task(client.post(path)) for path in ("/whole", "/stream"))
        await engine.begun.acquire()
        await engine.begun.acquire()
        engine.die()
        late = asyncio.create_task(client.post("/late"))
        assert (await stream).text == "data: error"
        await asyncio.wait_for(engine.has_left.wait(), LEAVE_S + 5)
        assert not whole.done()
        assert not late.done()
        whole.cancel()
        late.cancel()
