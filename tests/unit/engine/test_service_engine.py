from __future__ import annotations

import asyncio
import base64
import struct
from collections.abc import Iterator
from typing import Any

import pytest
from stub_service import Stub, completion, engine_on, refusal, reply, running

from conf.errors import UserError
from conf.schema.sampling import SamplingSpec
from conf.schema.service import ServiceSpec
from conf.schema.task import Task
from serve.engine.errors import EngineDead
from serve.engine.protocol import Completion, Outcome, Pooled, Rejection, Request
from serve.engine.service import engine as engine_module
from serve.engine.service.client import check_service
from serve.engine.service.engine import ServiceEngine


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "WAIT_S", 0.01)


def request(token: int = 1, sampling: SamplingSpec | None = None, **fields: Any) -> Request:
    return Request(id=f"r{token}", token_ids=[token, 2, 3], sampling=sampling or SamplingSpec(), **fields)


async def ask(engine: ServiceEngine, *requests: Request) -> list[Outcome]:
    return [outcome async for outcome in engine.generate(requests)]


def first(*answers: bytes | None) -> Any:
    """Answers so in turn, then as vLLM does."""
    left: Iterator[bytes | None] = iter(answers)
    return lambda body: next(left, completion(body))


async def test_rows_go_as_tokens_with_their_priority_and_each_gets_its_own_answer():
    async with running(Stub()) as stub, engine_on(stub) as engine:
        outcomes = await ask(engine, *(request(n) for n in range(40)))
    assert {o.request_id: o.text for o in outcomes if isinstance(o, Completion)} == {f"r{n}": str(n) for n in range(40)}
    assert sorted(body["prompt"] for body in stub.asked) == [[n, 2, 3] for n in range(40)]
    assert {body["priority"] for body in stub.asked} == {100}
    assert all(b"authorization: Bearer sk-secret" in head for head in stub.headers)


@pytest.mark.parametrize(
    "answer",
    [
        refusal(429, "too many", "rate_limit_exceeded", retry_after="0.01"),
        refusal(503, "no replica", "service_unavailable"),
        None,
        refusal(500, "broken"),
        refusal(504, "late"),
        reply(200, b"{"),
        reply(200, b"[" * 100_000),
        reply(200, {"choices": [], "usage": {"prompt_tokens": 1}}),
        reply(200, {"choices": [{"text": "x", "finish_reason": "abort"}], "usage": {"prompt_tokens": 1}}),
        reply(200, b"\x1f\x8b", content_encoding="gzip"),
        reply(302, b"", location="http://127.0.0.1:9/"),
        b"no HTTP at all\r\n\r\n",
    ],
    ids=["429", "503", "cut", "500", "504", "json", "deep", "none", "abort", "gzip", "302", "noise"],
)
async def test_what_is_the_services_fault_is_asked_again(answer: bytes | None):
    async with running(Stub(answer=first(answer, answer))) as stub, engine_on(stub) as engine:
        (outcome,) = await ask(engine, request())
    assert isinstance(outcome, Completion), outcome
    assert len(stub.asked) == 3


async def test_a_busy_service_is_waited_for_without_end_and_counts_as_no_failure():
    answers = [refusal(503, "busy", retry_after="0.001"), refusal(429, "busy", retry_after="0")] * 10
    async with running(Stub(answer=first(*answers))) as stub, engine_on(stub, max_retries=0) as engine:
        (outcome,) = await ask(engine, request())
    assert isinstance(outcome, Completion)
    assert len(stub.asked) == 21


async def test_a_service_that_fails_again_and_again_is_a_dead_engine():
    async with running(Stub(answer=lambda _: None)) as stub, engine_on(stub, max_retries=1) as engine:
        with pytest.raises(EngineDead, match="failed 2 times"):
            await ask(engine, request())
        with pytest.raises(EngineDead):
            await engine.health()
    assert len(stub.asked) == 2


@pytest.mark.parametrize(
    "answer, error",
    [
        (refusal(400, "This model's maximum context length is 64 tokens"), "prompt_too_long"),
        (refusal(400, "the grammar is bad"), "bad_grammar"),
        (refusal(422, "no"), "engine_rejected"),
        (refusal(413, "too large", "body_too_large"), "engine_rejected"),
        (refusal(429, "never", x_should_retry="false"), "engine_rejected"),
        (reply(200, b"x" * (1 << 17)), "answer_too_long"),
    ],
    ids=["context", "grammar", "shape", "large", "never", "huge"],
)
async def test_what_is_the_rows_fault_is_data_and_the_others_go_on(answer: bytes, error: str):
    def said(body: dict[str, Any]) -> bytes:
        return answer if body["prompt"][0] == 7 else completion(body)

    async with running(Stub(answer=said)) as stub, engine_on(stub, max_answer_bytes=1 << 16) as engine:
        outcomes = {o.request_id: o for o in await ask(engine, request(7), request(1))}
    rejection = outcomes["r7"]
    assert isinstance(rejection, Rejection)
    assert rejection.error == error
    assert isinstance(outcomes["r1"], Completion)


async def test_a_prompt_beyond_the_services_context_is_not_sent():
    long = Request(id="long", token_ids=[5] * 64, sampling=SamplingSpec())
    short = Request(id="short", token_ids=[5] * 60, sampling=SamplingSpec(max_tokens=100))
    async with running(Stub()) as stub, engine_on(stub) as engine:
        outcomes = {o.request_id: o for o in await ask(engine, long, short)}
    assert isinstance(outcomes["long"], Rejection)
    assert outcomes["long"].error == "prompt_too_long"
    assert [body["max_tokens"] for body in stub.asked] == [4]


@pytest.mark.parametrize("status, code", [(401, "invalid_api_key"), (403, ""), (404, "model_not_found")])
async def test_a_service_that_lets_us_in_no_more_is_a_dead_engine(status: int, code: str):
    async with running(Stub(answer=lambda _: refusal(status, "no", code))) as stub, engine_on(stub) as engine:
        with pytest.raises(EngineDead, match=str(status)):
            await ask(engine, request())


async def test_no_row_goes_while_an_interactive_request_waits_and_those_there_come_back():
    stub = Stub()
    served: list[int] = []
    go, is_there = asyncio.Event(), asyncio.Event()

    async def slow(body: dict[str, Any]) -> bytes:
        is_there.set()
        await go.wait()
        served.append(body["prompt"][0])
        return completion(body)

    stub.answer = slow
    async with running(stub), engine_on(stub) as engine:
        asking = asyncio.ensure_future(ask(engine, *(request(n) for n in range(20))))
        await asyncio.wait_for(is_there.wait(), 5)
        stub.load |= {"interactive": 3, "wait_s": 2.0}
        while not stub.gone:
            await asyncio.wait((asking,), timeout=0.005)
        looks = engine.stats().steps
        while engine.stats().steps < looks + 10:
            await asyncio.wait((asking,), timeout=0.005)
        assert not asking.done()
        asked = len(stub.asked)
        assert engine.called_back == asked
        assert served == []
        stub.load |= {"interactive": 0, "wait_s": 0.0}
        go.set()
        outcomes = await asyncio.wait_for(asking, 5)
    assert sorted(o.request_id for o in outcomes) == sorted(f"r{n}" for n in range(20))
    assert sorted(served) == list(range(20))


async def test_closing_a_stream_ends_its_requests_at_the_service():
    forever = asyncio.Event()

    async def never(body: dict[str, Any]) -> bytes:
        await forever.wait()
        return b""

    async with running(Stub(answer=never)) as stub, engine_on(stub) as engine:
        stream = engine.generate([request(n) for n in range(4)])
        pending = asyncio.ensure_future(anext(stream))
        while len(stub.asked) < 4:
            await asyncio.wait((pending,), timeout=0.005)
        pending.cancel()
        await asyncio.gather(pending, return_exceptions=True)
        await stream.aclose()  # type: ignore[attr-defined]
        assert engine.stats().running == 0
        while stub.gone < 4:
            await asyncio.wait((asyncio.ensure_future(asyncio.sleep(0.005)),))


async def test_an_answer_that_takes_too_long_is_the_services_failure():
    async def never(body: dict[str, Any]) -> bytes:
        await asyncio.get_running_loop().create_future()
        return b""

    async with running(Stub(answer=never)) as stub, engine_on(stub, request_timeout_s=0.05, max_retries=1) as engine:
        with pytest.raises(EngineDead, match="within"):
            await ask(engine, request())


async def test_samples_and_logprobs_are_those_of_the_contract():
    def said(body: dict[str, Any]) -> bytes:
        logprobs = {"tokens": ["a", "b"], "token_logprobs": [-3.0, -0.5], "text_offset": [0, 1]}
        logprobs["top_logprobs"] = [{"a": -3.0, "x": -0.1}, {"b": -0.5}]
        choices = [
            {"index": n, "text": "ab", "finish_reason": "length", "logprobs": logprobs, "token_ids": [1] * (2 - n)}
            for n in (1, 0)
        ]
        return reply(200, {"choices": choices, "usage": {"prompt_tokens": 3, "completion_tokens": 3}})

    sampling = SamplingSpec(n=2, temperature=1.0, logprobs=1, max_tokens=2, seed=5)
    async with running(Stub(answer=said)) as stub, engine_on(stub) as engine:
        (outcome,) = await ask(engine, request(sampling=sampling))
    assert isinstance(outcome, Completion)
    assert [sample.completion_tokens for sample in outcome.samples] == [2, 1]
    places = outcome.samples[0].logprobs
    assert places is not None
    assert [(p.token, p.logprob, p.top) for p in places] == [
        ("a", -3.0, (("x", -0.1),)),
        ("b", -0.5, (("b", -0.5),)),
    ]
    assert {"n", "seed", "logprobs"} <= stub.asked[0].keys()


async def test_an_embedding_comes_as_the_model_made_it():
    vector = struct.pack("<3f", 0.1, -0.2, 0.3)

    def said(body: dict[str, Any]) -> bytes:
        data = [{"index": 0, "embedding": base64.b64encode(vector).decode()}]
        return reply(200, {"data": data, "usage": {"prompt_tokens": 3}})

    async with running(Stub(answer=said)) as stub, engine_on(stub, task=Task.embed) as engine:
        (outcome,) = await ask(engine, request())
    assert isinstance(outcome, Pooled)
    assert (outcome.vector, outcome.prompt_tokens) == (vector, 3)


@pytest.mark.parametrize(
    "stub, says",
    [
        (Stub(models=refusal(401, "no")), "MANTA_API_KEY"),
        (Stub(models=refusal(404, "nothing here")), "404"),
        (Stub(models=reply(200, {"data": [{"id": "dem"}]})), "did you mean 'dem'"),
        (Stub(models=reply(200, b"<html>")), "OpenAI"),
        (Stub(models=refusal(503, "starting", retry_after="5")), "not ready"),
    ],
    ids=["key", "path", "model", "page", "starting"],
)
async def test_a_service_that_cannot_be_used_is_one_line_before_the_job(stub: Stub, says: str):
    async with running(stub):
        with pytest.raises(UserError, match=says) as caught:
            await check_service(ServiceSpec(url=stub.url), "demo", None)
    assert stub.url in str(caught.value)
    assert "\n" not in str(caught.value)


async def test_where_nothing_listens_it_says_so():
    async with running(Stub()) as stub:
        url = stub.url
    with pytest.raises(UserError, match="nothing answers"):
        await check_service(ServiceSpec(url=url), "demo", None)


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8000", "ftp://x", "http://", "http://x:99999", "http://a:b@x", "http://x/?q=1"]
)
def test_a_url_that_is_none_is_refused(url: str):
    with pytest.raises(UserError, match=r"engine\.service\.url"):
        ServiceSpec(url=url)


def test_v1_may_stand_in_the_url():
    assert ServiceSpec(url="http://x:1/v1/").url == "http://x:1"
