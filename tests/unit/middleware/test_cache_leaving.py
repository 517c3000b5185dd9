from __future__ import annotations

import asyncio
import json
from typing import Any

from cached_service import BODY, CHAT, Service, content, turns


async def test_who_came_first_may_leave_and_the_others_get_the_answer():
    service = Service()
    service.gate.clear()
    leader = asyncio.create_task(service.ask())
    await service.begun.wait()
    others = [asyncio.create_task(service.ask()) for _ in range(3)]
    await turns()
    leader.cancel()
    await turns()
    service.gate.set()
    answers = await asyncio.gather(*others)
    assert [content(a) for a in answers] == ["answer 1"] * 3
    assert (service.count, service.num_aborted) == (1, 0)


async def test_when_all_have_left_the_computation_is_aborted_and_the_next_one_starts_anew():
    service = Service()
    service.gate.clear()
    asked = [asyncio.create_task(service.ask()) for _ in range(3)]
    await service.begun.wait()
    await turns()
    for one in asked:
        one.cancel()
    late = asyncio.create_task(service.ask())  # before the abort has come through
    await turns()
    assert service.num_aborted == 1
    service.gate.set()
    assert (content(await late), service.count) == ("answer 2", 2)


async def test_a_client_that_disconnects_while_it_waits_ends_its_computation():
    service = Service()
    service.gate.clear()
    sent: list[Any] = []
    messages = iter([{"type": "http.request", "body": json.dumps(BODY).encode()}])

    async def receive() -> Any:
        if (message := next(messages, None)) is not None:
            return message
        await service.begun.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": CHAT, "root_path": "", "headers": [], "query_string": b""}
    await service.cache(scope, receive, send)
    await turns()
    assert (sent, service.num_aborted) == ([], 1)
