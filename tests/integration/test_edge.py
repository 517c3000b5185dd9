"""The edge engine in jobs and services, where importing torch, transformers or vllm fails."""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pyarrow.parquet as pq
import pytest
import services
from edge_model import NEEDS_ONNX, exports
from jobs import ENVIRONMENT, ROOT

from conf.schema.engine import Device, EngineKind, EngineSpec
from conf.schema.model import ModelSpec
from conf.schema.sampling import SamplingSpec
from serve.engine.errors import EngineDead
from serve.engine.prompt import load_renderer
from serve.engine.protocol import Completion, Rejection, Request
from serve.engine.start import start_engine

pytestmark = [NEEDS_ONNX, pytest.mark.timeout(290)]  # the first test pays the exports
BLOCK = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "vllm", "transformers"):
            raise ImportError(f"{name} must not be imported at the edge")

sys.meta_path.insert(0, Blocked())
"""


def without_torch(folder: Path) -> dict[str, str]:
    """An environment in which every Python process, of Ray too, fails to import what the edge has not."""
    (folder / "block").mkdir()
    (folder / "block" / "sitecustomize.py").write_text(BLOCK)
    path = os.pathsep.join([str(folder / "block"), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**ENVIRONMENT, "PYTHONPATH": path}


def edge_words() -> list[str]:
    return ["engine=edge", f"model.path={exports()['demo'][0]}", "model.name=demo"]


def batch(environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "conf.cli", "batch", *edge_words(), "data=tickets", *words]
    return subprocess.run(line, capture_output=True, text=True, timeout=200, env=environment, check=False)


def test_a_job_answers_the_demo_without_torch(tmp_path: Path, tickets: Path) -> None:
    environment = without_torch(tmp_path)
    done = batch(environment, f"data.input={tickets}", f"output.path={tmp_path}/out")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [row for path in (tmp_path / "out").glob("part-*.parquet") for row in pq.read_table(path).to_pylist()]
    assert len(rows) == 40
    assert sum(row["output"] == row["answer"] for row in rows) >= 38
    again = subprocess.run([sys.executable, "-c", "import torch"], env=environment, capture_output=True, check=False)
    assert b"must not be imported at the edge" in again.stderr


@pytest.mark.parametrize(
    "words, said",
    [
        (["sampling.json_schema='{}'"], "sampling.json_schema has no use with engine=edge"),
        (["task=embed"], "task=embed has no use with engine=edge"),
        (["model.adapters.a=/x"], "model.adapters has no use with engine=edge"),
        (["engine.vllm.seed=1"], "engine.vllm.seed has no use with engine=edge"),
        (["engine.device=cuda"], "engine.device=cuda has no use with engine=edge"),
        (["engine.tensor_parallel_size=2"], "engine=edge is not partitioned"),
        (["engine.max_model_len=5000"], "engine.max_model_len must be <= the 4096 tokens"),
        ([f"model.path={ROOT}/demo/model"], "no edge.json in it"),
        (["engine=cpu"], "was exported for engine=edge"),
    ],
)
def test_what_it_cannot_do_is_said_before_any_work(words: list[str], said: str) -> None:
    from conf.entry import compose
    from conf.errors import UserError
    from pipelines.batch.plan import make_plan

    with pytest.raises(UserError) as caught:
        make_plan(compose("batch", *edge_words(), "data=tickets", *words))
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "words, said",
    [
        (["deployment.vllm.enable_auto_tool_choice=true"], "deployment.vllm.enable_auto_tool_choice has no use with"),
        (["task=embed"], "task=embed has no use with engine=edge"),
        (["engine=cpu"], "was exported for engine=edge"),
    ],
)
def test_what_no_service_can_do_is_said_before_it_starts(words: list[str], said: str) -> None:
    from conf.entry import compose
    from conf.errors import UserError
    from serve.plan import make_plan

    with pytest.raises(UserError) as caught:
        make_plan(
            compose("serve", *edge_words(), "access.open=true", f"deployment.port={services.free_port()}", *words)
        )
    assert said in str(caught.value)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[services.Service]:
    folder = tmp_path_factory.mktemp("edge")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(services, "ENVIRONMENT", without_torch(folder))
        with services.serving(folder, *edge_words(), "cache=off") as running:
            yield running


@pytest.fixture
def client(service: services.Service) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def ticket() -> tuple[str, str]:
    row = json.loads((ROOT / "demo" / "tickets.jsonl").read_text().splitlines()[0])
    return row["ticket"], row["answer"]


def test_a_chat_is_answered_whole_and_as_a_stream(client: openai.OpenAI) -> None:
    asked, wanted = ticket()
    messages = [{"role": "user", "content": asked}]
    whole = client.chat.completions.create(model="demo", messages=messages, temperature=0)  # type: ignore[call-overload]
    assert whole.choices[0].message.content == wanted
    assert whole.choices[0].finish_reason == "stop"
    events = list(
        client.chat.completions.create(  # type: ignore[call-overload]
            model="demo", messages=messages, temperature=0, stream=True, stream_options={"include_usage": True}
        )
    )
    assert "".join(event.choices[0].delta.content or "" for event in events if event.choices) == wanted
    assert events[-2].choices[0].finish_reason == "stop"
    assert events[-1].usage == whole.usage
    assert len(events) > 10


def test_prompts_are_completed_with_logprobs(client: openai.OpenAI) -> None:
    done = client.completions.create(
        model="demo",
        prompt=["one", [5, 6, 7]],
        max_tokens=4,
        temperature=0,
        logprobs=2,
        extra_body={"ignore_eos": True},
    )
    assert [choice.finish_reason for choice in done.choices] == ["length", "length"]
    places = done.choices[0].logprobs
    assert places is not None
    assert len(places.tokens or ()) == 4
    assert "".join(places.tokens or ()) == done.choices[0].text
    assert all(len(top) == 2 for top in places.top_logprobs or ())


def test_several_answers_stop_at_a_text(client: openai.OpenAI) -> None:
    asked, _ = ticket()
    fields = {
        "messages": [{"role": "user", "content": asked}],
        "n": 3,
        "temperature": 0.1,
        "seed": 1,
        "stop": ['","pro'],
    }
    whole = client.chat.completions.create(model="demo", **fields)  # type: ignore[call-overload]
    texts = {choice.index: choice.message.content for choice in whole.choices}
    assert len(texts) == 3
    assert all(text.startswith('{"intent":"') and '","pro' not in text for text in texts.values())
    streamed = dict.fromkeys(texts, "")
    for event in client.chat.completions.create(model="demo", stream=True, **fields):  # type: ignore[call-overload]
        for choice in event.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == texts


def test_models_and_what_is_refused(service: services.Service, client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["demo"]
    chat = f"{service.url}/v1/chat/completions"
    message = {"messages": [{"role": "user", "content": "x"}]}
    for body, status in [
        ({"model": "other", **message}, 404),
        ({"model": "demo"}, 400),
        ({"model": "demo", "messages": [{"role": "user", "content": "x " * 9000}]}, 400),
        ({"model": "demo", **message, "response_format": {"type": "json_object"}}, 400),
        ({"model": "demo", **message, "temperature": -1}, 400),
        ({"model": "demo", **message, "stream": True, "max_tokens": 5000}, 400),
        ({"model": "demo", **message, "tools": [{"type": "function", "function": {"name": "f"}}]}, 400),
    ]:
        answer = httpx.post(chat, json=body)
        assert answer.status_code == status, (body, answer.text)
        assert answer.json()["error"]["message"]
    assert httpx.post(f"{service.url}/v1/embeddings", json={"model": "demo", "input": "x"}).status_code == 404


@pytest.mark.parametrize("name", ["qwen3", "mistral"])
async def test_however_prompts_are_read_and_seated_the_answers_are_the_same(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = random.Random(0)
    prompts = [[draw.randrange(3, 2048) for _ in range(size)] for size in (1, 3, 60, 17, 2, 33, 90, 16, 5, 48, 70, 4)]

    async def answers(part_tokens: int, sequences: int) -> dict[str, list[str]]:
        monkeypatch.setattr("serve.engine.onnx.stepper.PREFILL_TOKENS", part_tokens)
        spec = EngineSpec(kind=EngineKind.onnx, max_num_seqs=sequences)
        engine = await start_engine(ModelSpec(path=str(exports()[name][0])), spec, Device.cpu, 128)
        sampling = [SamplingSpec(max_tokens=5 + 7 * (i % 4), ignore_eos=True, logprobs=0) for i in range(len(prompts))]
        requests = [Request(id=str(i), token_ids=p, sampling=sampling[i]) for i, p in enumerate(prompts)]
        outcomes = [outcome async for outcome in engine.generate(requests)]
        await engine.close()
        completions = [outcome for outcome in outcomes if isinstance(outcome, Completion)]
        return {o.request_id: [place.token for place in o.samples[0].logprobs or ()] for o in completions}

    alone = await answers(512, 1)
    assert len(alone) == len(prompts)
    assert await answers(16, 3) == alone  # prompts in parts, beside others that are answered
    assert await answers(512, 12) == alone  # side by side, filled up


async def test_a_client_that_leaves_frees_the_engine() -> None:
    model = ModelSpec(path=str(exports()["demo"][0]))
    spec = EngineSpec(kind=EngineKind.onnx, max_num_seqs=2)
    engine = await start_engine(model, spec, Device.cpu, 512)
    tokens = load_renderer(model, 512, None).tokens(["a"])[0]
    request = Request(id="a", token_ids=tokens, sampling=SamplingSpec(max_tokens=400, ignore_eos=True))
    stream = engine.stream(request)  # type: ignore[attr-defined]
    await anext(stream)
    assert engine.stats().running == 1
    await stream.aclose()
    assert engine.stats().running == 0
    steps = -1
    while steps != engine.stats().steps:
        steps = engine.stats().steps
        await asyncio.sleep(0.1)
    grammar = Request(id="g", token_ids=tokens, sampling=SamplingSpec(regex="a"))
    (outcome,) = [outcome async for outcome in engine.generate([grammar])]
    assert isinstance(outcome, Rejection)
    assert outcome.error == "bad_grammar"
    (outcome,) = [o async for o in engine.generate([Request(id="b", token_ids=tokens, sampling=SamplingSpec())])]
    assert isinstance(outcome, Completion)
    await engine.close()


async def test_a_cache_too_small_for_the_context_is_said_at_the_start() -> None:
    model = ModelSpec(path=str(exports()["demo"][0]))
    with pytest.raises(EngineDead, match=r"engine.kv_cache_bytes must be >= 2097152 for a context of 512 tokens"):
        await start_engine(model, EngineSpec(kind=EngineKind.onnx, kv_cache_bytes=1000), Device.cpu, 512)
