"""What a replica tells the router of its requests."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest

from serve.middleware.progress import Progress
from serve.router.flights import Event, Moment


async def run(app: Any, method: str = "POST", headers: tuple[tuple[bytes, bytes], ...] = ()) -> list[Event]:
    told: list[Event] = []

    async def send(message: Any) -> None: ...

    async def receive() -> Any:
        return {"type": "http.request"}

    scope = {"type": "http", "method": method, "headers": headers, "path": "/"}
    with suppress(ConnectionError):
        await Progress(app, 4.0, told.append)(scope, receive, send)
    return told


async def whole(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"{}"})


async def stream(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for part in (b"", b"a", b"b"):
        await send({"type": "http.response.body", "body": part, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def broken(scope: Any, receive: Any, send: Any) -> None:
    raise ConnectionError


ROUTED = ((b"x-serve-router-flight", b"one.7"), (b"content-length", b"4000"))


@pytest.mark.parametrize(
    ("app", "moments"),
    [
        (whole, [Moment.began, Moment.ended]),
        (stream, [Moment.began, Moment.first_token, Moment.ended]),
        (broken, [Moment.began, Moment.ended]),
    ],
)
async def test_each_end_is_told_and_the_first_token_of_a_stream(app: Any, moments: list[Moment]):
    told = await run(app, headers=ROUTED)
    assert [event.moment for event in told] == moments
    assert {event.flight for event in told} == {"one.7"}
    assert told[0].tokens == 1000


async def test_one_that_no_router_sent_has_a_name_of_its_own():
    first, other = await run(whole), await run(whole)
    assert len({event.flight for event in first}) == 1
    assert first[0].flight != other[0].flight


async def test_a_get_is_nobody_s_work():
    assert await run(whole, method="GET") == []
