from __future__ import annotations

import asyncio
import math
import struct
import subprocess
import sys
import time
from array import array

import pytest

from conf.schema.engine import EngineKind, EngineSpec, FaultSpec
from conf.schema.sampling import SamplingSpec
from conf.schema.task import Task
from serve.engine.fake import FakeEngine
from serve.engine.protocol import Completion, Outcome, Pooled, Rejection, Request

SAMPLING = SamplingSpec(max_tokens=4)


def decode(token_ids) -> str:
    return "".join(chr(token_id) for token_id in token_ids)


def fake(task: Task = Task.generate, **fault) -> FakeEngine:
    spec = EngineSpec(kind=EngineKind.fake, max_num_seqs=256, fault=FaultSpec(**fault))
    return FakeEngine(spec, 64, decode, task, {"formal": "/a", "brief": "/b"})


def request(text: str, sampling: SamplingSpec = SAMPLING, name: str = "r", **fields) -> Request:
    return Request(id=name, token_ids=[ord(c) for c in text], sampling=sampling, **fields)


async def ask(engine: FakeEngine, *requests: Request) -> list[Outcome]:
    return [outcome async for outcome in engine.generate(requests)]


async def one(engine: FakeEngine, asked: Request) -> Outcome:
    (outcome,) = await ask(engine, asked)
    return outcome


async def test_samples_differ_and_count_their_tokens() -> None:
    outcome = await one(fake(), request("hello", SamplingSpec(max_tokens=4, n=3, temperature=1)))
    assert isinstance(outcome, Completion)
    assert [sample.text for sample in outcome.samples] == ["ello (1)", "ello (2)", "ello (3)"]
    assert (outcome.prompt_tokens, outcome.completion_tokens) == (5, 12)


async def test_logprobs_have_a_place_for_each_token_and_the_likeliest_first() -> None:
    outcome = await one(fake(), request("hello", SamplingSpec(max_tokens=2, logprobs=2)))
    assert isinstance(outcome, Completion)
    places = outcome.samples[0].logprobs
    assert places is not None
    assert [place.token for place in places] == ["l", "o"]
    for place in places:
        assert place.logprob < 0
        assert [logprob for _, logprob in place.top] == [place.logprob, place.logprob - 1]
    bare = await one(fake(), request("hello", SamplingSpec(max_tokens=2, logprobs=0)))
    assert isinstance(bare, Completion)
    assert bare.samples[0].logprobs is not None
    assert all(place.top == () for place in bare.samples[0].logprobs)


async def test_a_choice_is_one_of_the_texts() -> None:
    sampling = SamplingSpec(choice=["yes", "no"])
    outcomes = [await one(fake(), request(text, sampling)) for text in ("a", "b")]
    assert {o.text for o in outcomes if isinstance(o, Completion)} == {"yes", "no"}


async def test_an_adapter_changes_the_answer_and_an_unknown_one_is_the_rows_fault() -> None:
    plain, formal = [await one(fake(), request("hello", adapter=name)) for name in (None, "formal")]
    assert isinstance(plain, Completion)
    assert isinstance(formal, Completion)
    assert (plain.text, formal.text) == ("ello", "formal: ello")
    unknown = await one(fake(), request("hello", adapter="rude"))
    assert isinstance(unknown, Rejection)
    assert unknown.error == "unknown_adapter"
    assert "'rude'" in unknown.message
    assert "(brief, formal)" in unknown.message


@pytest.mark.parametrize("task", [Task.embed, Task.classify, Task.score])
async def test_vectors_are_functions_of_the_prompt(task: Task) -> None:
    engine = fake(task)
    outcomes = [await one(engine, request(text)) for text in ("hello", "hello", "world")]
    vectors = []
    for outcome in outcomes:
        assert isinstance(outcome, Pooled)
        assert outcome.prompt_tokens == 5
        vectors.append(array("f", outcome.vector))
    assert vectors[0] == vectors[1] != vectors[2]
    for vector in vectors:
        if task is Task.embed:
            assert len(vector) == 8
            assert math.isclose(sum(x * x for x in vector), 1, rel_tol=1e-6)
        elif task is Task.classify:
            assert len(vector) == 3
            assert math.isclose(sum(vector), 1, rel_tol=1e-6)
            assert min(vector) >= 0
        else:
            (score,) = vector
            assert 0 <= score <= 1
    assert engine.stats().completions == 3


async def test_the_order_of_a_pair_is_part_of_its_score() -> None:
    engine = fake(Task.score)
    pairs = [await one(engine, request("hello", split=split)) for split in (2, 3)]
    assert len({p.vector for p in pairs if isinstance(p, Pooled)}) == 2


@pytest.mark.parametrize("task, longest", [(Task.generate, 63), (Task.embed, 64)])
async def test_only_text_needs_room_for_an_answer(task: Task, longest: int) -> None:
    engine = fake(task)
    assert not isinstance(await one(engine, request("x" * longest)), Rejection)
    rejection = await one(engine, request("x" * (longest + 1)))
    assert isinstance(rejection, Rejection)
    assert rejection.error == "prompt_too_long"


async def test_a_hung_engine_answers_neither_that_request_nor_later_ones() -> None:
    engine = fake(hang_marker="!")
    assert isinstance(await one(engine, request("fine")), Completion)
    for text in ("hang!", "fine"):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(ask(engine, request(text)), 0.05)
    await engine.health()  # nobody knows
    assert engine.stats().running == 0


async def test_a_request_in_flight_hangs_with_the_engine() -> None:
    engine = fake(hang_marker="!", latency_ms=20)
    slow = asyncio.ensure_future(ask(engine, request("fine", name="slow")))
    await asyncio.sleep(0)
    hung = asyncio.ensure_future(ask(engine, request("hang!", name="hung")))
    done, pending = await asyncio.wait([slow, hung], timeout=0.1)
    assert not done
    for task in pending:
        task.cancel()
    await asyncio.gather(*pending, return_exceptions=True)


def test_a_kill_marker_ends_the_process_at_once() -> None:
    code = (
        "import asyncio\nfrom tests.unit.engine.test_fake import ask, fake, request\n"
        "try: asyncio.run(ask(fake(kill_marker='!'), request('x!')))\nfinally: print('still here')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (-9, ""), done.stderr


async def test_an_engine_without_latency_answers_as_fast_as_rows_can_be_passed() -> None:
    requests = [request("hello", name=str(index)) for index in range(5000)]
    began = time.perf_counter()
    outcomes = await ask(fake(), *requests)
    assert len(outcomes) == 5000
    assert time.perf_counter() - began < 2.5  # 0.15 s on an idle machine


def test_vectors_are_float32_little_endian() -> None:
    from serve.engine.fake import fake_vector

    asked = request("hello")
    (score,) = struct.unpack("<f", fake_vector(asked, Task.score))
    assert 0 < score < 1
