from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_service import CHAT, Clock, make_secret, make_service
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from conf.schema.access import AccessSpec
from serve.keyring import KeyRing
from serve.middleware.answer import ASGIApp, Message, Receive, Scope, Send, refuse
from serve.middleware.measure import Measure
from serve.middleware.observe import Observe
from serve.middleware.record import Record, RequestLog
from serve.middleware.routes import EXPOSED, Routes
from serve.middleware.tally import MAX_CAUSES, OTHER, Tally
from serve.middleware.usage import Usage


class Seen:
    """An app that is observed."""

    def __init__(self, folder: Path, app: ASGIApp, **headers: str) -> None:
        self.tally = Tally(["demo"])
        self.clock = Clock()
        self.file = folder / "requests.jsonl"
        self.app = Observe(app, self.tally, RequestLog(self.file), self.clock)
        self.client = httpx.AsyncClient(
            transport=httpx.ASGITransport(self.app, raise_app_exceptions=False),
            base_url="http://service",
            headers=headers,
        )

    def records(self) -> list[Record]:
        return [msgspec.json.decode(line, type=Record) for line in self.file.read_bytes().splitlines()]

    def value(self, name: str, **labels: str) -> float:
        samples = [sample for family in self.tally.families() for sample in family.samples if sample.name == name]
        return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())


def keyed(folder: Path, **spec: Any) -> Seen:
    path = folder / "keys.json"
    secret = make_secret(path, "team")
    return Seen(folder, make_service(AccessSpec(**spec), KeyRing(path), Clock()), authorization=f"Bearer {secret}")


async def test_a_request_is_counted_and_written_down_without_its_text(tmp_path: Path):
    seen = keyed(tmp_path)
    body = {"model": "demo", "messages": [{"role": "user", "content": "Zanzibar"}], "fake_usage": 30}
    answer = await seen.client.post(CHAT, json=body, headers={"x-request-id": "a.1"})
    assert answer.headers["x-request-id"] == "a.1"
    (record,) = seen.records()
    assert (record.request_id, record.key, record.path, record.status, record.model) == (
        "a.1",
        "team",
        CHAT,
        200,
        "demo",
    )
    assert "Zanzibar" not in seen.file.read_text()
    assert seen.client.headers["authorization"].split()[1] not in seen.file.read_text()
    assert seen.value("manta_requests_total", route=CHAT, status="2xx", key="team") == 1
    assert seen.value("manta_requests_in_flight") == 0


async def test_a_refusal_says_its_cause_and_has_an_id(tmp_path: Path):
    seen = keyed(tmp_path, max_tokens=10)
    for body, status, cause in (
        ({"max_tokens": 11}, 400, "max_tokens_too_large"),
        ({"model": "unknown"}, 404, "model_not_found"),
    ):
        answer = await seen.client.post(CHAT, json=body)
        record = seen.records()[-1]
        assert (record.status, record.cause, record.request_id) == (status, cause, answer.headers["x-request-id"])
        assert seen.value("manta_refused_total", cause=cause, key="team") == 1
    answer = await seen.client.post(CHAT, json={}, headers={"authorization": "Bearer no"})
    record = seen.records()[-1]
    assert (record.status, record.cause, record.key) == (401, "invalid_api_key", None)
    assert record.request_id == answer.headers["x-request-id"]


async def test_times_of_a_stream_are_to_its_first_token_and_between_the_others(tmp_path: Path):
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        clock.now_s += 0.25
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        for _ in range(5):
            await send({"type": "http.response.body", "body": b"data: {}\n\n", "more_body": True})
            clock.now_s += 0.125
        scope["manta"]["usage"] = Usage(prompt_tokens=7, completion_tokens=5)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    seen = Seen(tmp_path, app)
    clock = seen.clock
    await seen.client.post(CHAT)
    (record,) = seen.records()
    assert (record.ttft_ms, record.duration_ms, record.stream) == (250, 875, True)
    assert (record.prompt_tokens, record.completion_tokens) == (7, 5)
    assert seen.value("manta_time_to_first_token_seconds_sum") == 0.25
    assert seen.value("manta_time_per_output_token_seconds_sum") == 0.125
    assert seen.value("manta_prompt_tokens_total") == 7


async def test_tokens_of_a_stream_that_reports_none_are_those_that_the_engine_leaves(tmp_path: Path):
    class Info:
        prompt_tokens, completion_tokens = 11, 3

    class Metadata:
        final_usage_info = Info()

    async def chat(request: Request) -> Response:
        async def events():
            yield b"data: {}\n\n"
            request.state.request_metadata = Metadata()
            yield b"data: [DONE]\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    seen = Seen(tmp_path, Measure(Starlette(routes=[Route(CHAT, chat, methods=["POST"])]), AccessSpec()))
    await seen.client.post(CHAT)
    (record,) = seen.records()
    assert (record.prompt_tokens, record.completion_tokens) == (11, 3)


async def test_an_exception_is_a_500_that_tells_nothing(tmp_path: Path):
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise ValueError("the prompt Zanzibar at 10.0.0.1")

    seen = Seen(tmp_path, app)
    answer = await seen.client.post(CHAT)
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
    assert "Zanzibar" not in answer.text + seen.file.read_text()
    assert seen.records()[0].cause == "internal_error"


async def test_an_exception_within_an_answer_breaks_the_connection(tmp_path: Path):
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise KeyError

    seen = Seen(tmp_path, app)
    with pytest.raises(KeyError):
        await seen.app(scope(), None, ignore)  # type: ignore[arg-type]
    assert (seen.records()[0].status, seen.records()[0].cause) == (200, "internal_error")


@pytest.mark.parametrize("is_begun", [False, True])
async def test_a_client_that_leaves_is_written_down(tmp_path: Path, is_begun: bool):
    waits = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if is_begun:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        waits.set()
        await asyncio.Event().wait()

    seen = Seen(tmp_path, app)
    task = asyncio.create_task(seen.app(scope(), None, ignore))  # type: ignore[arg-type]
    await waits.wait()
    assert seen.value("manta_requests_in_flight") == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    (record,) = seen.records()
    assert (record.status, record.cause) == (200 if is_begun else 499, "client_left")
    assert seen.value("manta_requests_in_flight") == 0


@pytest.mark.parametrize("is_stream, is_begun, wait_s", [(True, False, 3.0), (True, True, 0.0), (False, False, 0.0)])
@pytest.mark.parametrize("priority, whose", [(0, "interactive"), (100, "batch")])
async def test_who_is_held_and_waits_for_a_first_token_is_told_by_whose_turn_it_is(
    tmp_path: Path, is_stream: bool, is_begun: bool, wait_s: float, priority: int, whose: str
):
    waits = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert seen.value("manta_requests_held") == 0  # its body has not come
        scope["manta"] |= {"body": {"stream": is_stream}, "priority": priority}
        if is_begun:
            headers = [(b"content-type", b"text/event-stream")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": b"data: x\n\n", "more_body": True})
        waits.set()
        await asyncio.Event().wait()

    seen = Seen(tmp_path, app)
    task = asyncio.create_task(seen.app(scope(), None, ignore))  # type: ignore[arg-type]
    await waits.wait()
    seen.clock.now_s += 3
    assert (seen.value("manta_requests_held"), seen.value("manta_requests_held", priority=whose)) == (1, 1)
    assert seen.value("manta_first_token_wait_seconds", priority=whose) == wait_s
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert seen.value("manta_requests_held") == seen.value("manta_first_token_wait_seconds") == 0


def scope(path: str = CHAT, *headers: tuple[bytes, bytes]) -> Scope:
    return {"type": "http", "method": "POST", "path": path, "headers": list(headers), "query_string": b""}


async def ignore(message: Message) -> None:
    pass


@given(st.lists(st.tuples(st.sampled_from(["/x", "/v1/models", CHAT, "/metrics"]), st.text(max_size=20)), max_size=20))
def test_labels_are_of_a_bounded_set(asked: list[tuple[str, str]]):
    tally = Tally(["demo", "tuned"])
    for path, name in asked:
        assert tally.route(path) in EXPOSED | {OTHER}
        assert tally.model(name) in ("demo", "tuned", OTHER)
        assert tally.cause(name) in (name, OTHER)
    causes = {tally.cause(f"cause_{number}") for number in range(200)}
    assert len(causes) <= MAX_CAUSES + 1


async def test_probes_are_counted_and_not_written_down_while_all_is_well(tmp_path: Path):
    is_good = True

    async def is_ready() -> bool:
        return is_good

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await refuse(send, 400, "no")

    seen = Seen(tmp_path, Routes(app, is_ready))
    assert (await seen.client.get("/ready")).status_code == 200
    assert not seen.file.exists()
    is_good = False
    await seen.client.get("/ready")
    await seen.client.get("/made/up")
    assert [(record.path, record.status) for record in seen.records()] == [("/ready", 503), (OTHER, 404)]
    assert seen.value("manta_requests_total") == 3


def test_a_full_file_is_replaced_and_the_oldest_one_goes(tmp_path: Path):
    log = RequestLog(tmp_path / "requests", max_bytes=300)
    for number in range(40):
        log.write(Record(time="", request_id=f"{number:02}", method="GET", path="/", status=200, duration_ms=1))
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["requests", "requests.1", "requests.2", "requests.3"]
    assert all(file.stat().st_size <= 300 for file in files)
    lines = b"".join(file.read_bytes() for file in reversed(files)).splitlines()
    ids = [msgspec.json.decode(line, type=Record).request_id for line in lines]
    assert ids == [f"{number:02}" for number in range(40 - len(ids), 40)]
    again = RequestLog(tmp_path / "requests", max_bytes=1000)  # a replica that comes back goes on with its file
    again.write(Record(time="", request_id="more", method="GET", path="/", status=200, duration_ms=1))
    assert files[0].read_bytes().count(b"\n") > 1


def test_a_disk_that_takes_nothing_costs_no_request(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    log = RequestLog(tmp_path / "gone" / "requests")
    log.write(Record(time="", request_id="1", method="GET", path="/", status=200, duration_ms=1))
    assert "cannot be logged" in caplog.text


async def test_what_is_no_request_passes(tmp_path: Path):
    kinds: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        kinds.append(scope["type"])

    await Seen(tmp_path, app).app({"type": "lifespan"}, None, ignore)  # type: ignore[arg-type]
    assert kinds == ["lifespan"]


async def test_an_error_that_is_no_json_has_a_cause(tmp_path: Path):
    async def teapot(request: Request) -> Response:
        return JSONResponse(["no"], 418)

    seen = Seen(tmp_path, Starlette(routes=[Route(CHAT, teapot, methods=["POST"])]))
    await seen.client.post(CHAT)
    assert seen.records()[0].cause == "status_418"
    assert json.loads(seen.file.read_text())["status"] == 418
