"""Requests that wait for a place in a replica."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import httpx
import pytest

from serve.middleware.answer import Receive, Scope, Send, answer
from serve.middleware.past import Past
from serve.middleware.proxy import Proxy
from serve.middleware.room import Room


class Engine:
    """Answers once it is let; notes who came in."""

    def __init__(self) -> None:
        self.entered: list[str] = []
        self.most = self.num = 0
        self.is_free = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.entered.append(scope["path"])
        self.num += 1
        self.most = max(self.most, self.num)
        try:
            await self.is_free.wait()
            if scope["path"] == "/broken":
                raise RuntimeError("broken")
            await answer(send, 200, b"")
        finally:
            self.num -= 1


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not is_so():
            await asyncio.sleep(0)


@pytest.mark.parametrize("max_waiting", [0, 1, 3])
async def test_so_many_have_a_place_and_so_many_wait_in_turn_and_the_rest_is_told_to_come_again(max_waiting: int):
    engine = Engine()
    transport = httpx.ASGITransport(Room(engine, 2, max_waiting))
    async with httpx.AsyncClient(transport=transport, base_url="http://replica") as client:
        asked = []
        for number in range(2 + max_waiting):
            asked.append(asyncio.create_task(client.post(f"/{number}")))
            await until(lambda number=number: len(engine.entered) == min(number + 1, 2))
            await asyncio.sleep(0)
        refused = await client.post("/full")
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert refused.json()["error"]["code"] == "overloaded"
        engine.is_free.set()
        assert [answered.status_code for answered in await asyncio.gather(*asked)] == [200] * len(asked)
        assert engine.entered == [f"/{number}" for number in range(2 + max_waiting)]
        assert engine.most == 2


async def test_a_place_is_given_back_whatever_becomes_of_a_request():
    engine = Engine()
    room = Room(engine, 1, 1)

    async def unheard(_: object) -> None:
        pass

    def begin(path: str) -> asyncio.Task[None]:
        return asyncio.create_task(room({"type": "http", "path": path}, unheard, unheard))  # type: ignore[arg-type]

    taken = begin("/broken")
    await until(lambda: engine.num == 1)
    waiting = begin("/waiting")
    await asyncio.sleep(0)
    waiting.cancel()  # it had no place, and gives none back
    with pytest.raises(asyncio.CancelledError):
        await waiting
    engine.is_free.set()
    await taken  # whoever is around it ends the answer, which has no end
    await begin("/next")
    assert engine.entered == ["/broken", "/next"]


async def test_a_stream_that_breaks_in_it_ends_with_an_error_event():
    async def breaking(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
        raise RuntimeError("broken")

    past = Past(breaking, own=lambda has_room: Room(breaking, 1, 0) if has_room else None)
    app = Proxy(past, timeout_s=5.0, is_replica=True)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://replica") as client:
        answered = await client.post("/v1/completions", json={})
    begun, ended = answered.text.split("\n\n", 1)
    assert begun == "data: 1"
    assert '"replica_lost"' in ended
