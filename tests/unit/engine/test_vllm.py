"""What stands between the contract and vLLM, without vLLM."""

from __future__ import annotations

import asyncio
import json
import struct
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from conf.schema.engine import Device, EngineSpec
from conf.schema.model import ModelSpec
from conf.schema.sampling import SamplingSpec
from conf.schema.task import Task
from serve.engine.arguments import engine_argument_names
from serve.engine.errors import EngineDead, RequestRejected
from serve.engine.protocol import Completion, Pooled, Rejection, Request
from serve.engine.speed import Unbegun
from serve.engine.vllm import llm
from serve.engine.vllm.api import VllmApi
from serve.engine.vllm.arguments import engine_arguments
from serve.engine.vllm.engine_log import EngineLog
from serve.engine.vllm.grammar import check_schema, has_grammar
from serve.engine.vllm.outcomes import cosine, outcome, rejected

MODEL = ModelSpec(path="/m")
REQUEST = Request(id="r", token_ids=[1, 2, 3], sampling=SamplingSpec())


def adapters(folder: Path, count: int, rank: int) -> ModelSpec:
    names = [f"a{index}" for index in range(count)]
    for name in names:
        (folder / name).mkdir()
        (folder / name / "adapter_config.json").write_text(json.dumps({"r": rank}))
    return replace(MODEL, adapters={name: str(folder / name) for name in names})


@pytest.mark.parametrize("task", Task)
def test_every_argument_is_one_of_vllms(tmp_path: Path, task: Task) -> None:
    spec = EngineSpec(tensor_parallel_size=2, max_model_len=64, kv_cache_bytes=1 << 30)
    arguments = engine_arguments(adapters(tmp_path, 2, 4), spec, Device.cuda, "auto", task)
    assert arguments.keys() <= engine_argument_names()
    assert arguments["runner"] == ("generate" if task is Task.generate else "pooling")


def test_what_the_user_says_wins() -> None:
    spec = EngineSpec(vllm={"structured_outputs_config": {"backend": "guidance"}, "runner": "auto"})
    arguments = engine_arguments(MODEL, spec, Device.cpu, "auto")
    assert arguments["structured_outputs_config"] == {"backend": "guidance"}
    assert arguments["runner"] == "auto"


@pytest.mark.parametrize("rank, allowed", [(1, 1), (4, 8), (16, 16), (17, 32), (300, 320), (512, 512)])
def test_ranks_are_rounded_up_to_what_vllm_has(tmp_path: Path, rank: int, allowed: int) -> None:
    assert engine_arguments(adapters(tmp_path, 1, rank), EngineSpec(), Device.cuda, "auto")["max_lora_rank"] == allowed


@pytest.mark.parametrize(
    "device, count, active, loaded",
    [(Device.cuda, 3, 3, 3), (Device.cuda, 100, 8, 64), (Device.cpu, 3, 4, 4), (Device.cpu, 100, 101, 101)],
)
def test_on_a_cpu_a_place_stays_empty(tmp_path: Path, device: Device, count: int, active: int, loaded: int) -> None:
    arguments = engine_arguments(adapters(tmp_path, count, 4), EngineSpec(), device, "auto")
    assert (arguments["max_loras"], arguments["max_cpu_loras"]) == (active, loaded)


@pytest.mark.parametrize(
    "said, has_few, alone",
    [
        ({}, True, True),
        ({}, False, False),
        ({"tensor_parallel_size": 2}, True, False),
        ({"pipeline_parallel_size": 2}, True, False),
        ({"distributed_executor_backend": "mp"}, True, False),
    ],
)
def test_a_whole_model_on_few_cores_has_no_worker(
    said: dict[str, Any], has_few: bool, alone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llm, "has_few_cores", lambda: has_few)
    arguments = {"tensor_parallel_size": 1, "pipeline_parallel_size": 1, **said}
    assert llm.computes_alone(arguments) == alone


@pytest.mark.parametrize(
    "text, error, message",
    [
        ("The prompt (length 9) is longer than the maximum model length of 8.", "prompt_too_long", "length 9"),
        ("This model's maximum context length is 8 tokens", "prompt_too_long", "8 tokens"),
        ("[07:01:51] /project/cpp/regex_converter.cc:83: Grammar error: x", "bad_grammar", "Grammar error: x"),
        ("The provided JSON schema contains features not supported by xgrammar.", "bad_grammar", "backend=guidance"),
        ("temperature must be in [0, 2]\n got 3", "engine_rejected", "temperature must be in [0, 2] got 3"),
        ("", "engine_rejected", "ValueError"),
    ],
)
def test_vllms_errors_get_a_class_and_one_line(text: str, error: str, message: str) -> None:
    rejection = rejected(ValueError(text))
    assert rejection.error == error
    assert message in rejection.message
    assert "\n" not in rejection.message
    assert ".cc" not in rejection.message


@dataclass
class Logprob:
    logprob: float
    rank: int
    decoded_token: str | None


def answer(**fields: Any) -> SimpleNamespace:
    return SimpleNamespace(**{"text": "ab", "finish_reason": "stop", "token_ids": [7, 8], "logprobs": None, **fields})


def output(*answers: SimpleNamespace) -> SimpleNamespace:
    return SimpleNamespace(prompt_token_ids=[1, 2, 3], num_cached_tokens=2, outputs=list(answers), finished=True)


def test_all_samples_are_kept_in_their_order() -> None:
    got = outcome(Task.generate, REQUEST, output(answer(text="x"), answer(text="y", finish_reason="length")))
    assert isinstance(got, Completion)
    assert [(s.text, s.finish_reason, s.completion_tokens) for s in got.samples] == [
        ("x", "stop", 2),
        ("y", "length", 2),
    ]
    assert (got.prompt_tokens, got.completion_tokens) == (3, 4)


def test_the_likeliest_come_first_and_the_chosen_one_only_if_it_is_among_them() -> None:
    places = [
        {7: Logprob(-3.0, 9, "a"), 5: Logprob(-0.5, 2, "c"), 4: Logprob(-0.1, 1, "d")},
        {8: Logprob(-0.4, 2, None), 6: Logprob(-0.2, 1, "e")},
    ]
    request = replace(REQUEST, sampling=SamplingSpec(logprobs=2))
    got = outcome(Task.generate, request, output(answer(logprobs=places)))
    assert isinstance(got, Completion)
    first, second = got.samples[0].logprobs or ()
    assert (first.token, first.logprob, first.top) == ("a", -3.0, (("d", -0.1), ("c", -0.5)))
    assert (second.token, second.logprob, second.top) == ("", -0.4, (("e", -0.2), ("", -0.4)))


@pytest.mark.parametrize("regex, error", [("a", "bad_grammar"), (None, "engine_rejected")])
def test_an_answer_that_ended_in_an_error_is_a_rejection(regex: str | None, error: str) -> None:
    request = replace(REQUEST, sampling=SamplingSpec(regex=regex))
    got = outcome(Task.generate, request, output(answer(), answer(finish_reason="error")))
    assert isinstance(got, Rejection)
    assert (got.request_id, got.error) == ("r", error)


def nested(depth: int) -> str:
    return '{"a":' * depth + "1" + "}" * depth


@pytest.mark.parametrize(
    "schema, complaint",
    [
        ("{", "is no JSON"),
        ("5", "must be an object, got 5"),
        ("[]", "must be an object"),
        (nested(65), "nested deeper than 64"),
        (nested(100_000), "nested deeper than 64"),
        ('{"items": [{"$ref": "https://x.invalid"}]}', "refers to 'https://x.invalid'"),
    ],
)
def test_what_is_no_schema_is_rejected(schema: str, complaint: str) -> None:
    with pytest.raises(RequestRejected) as caught:
        check_schema(schema)
    assert caught.value.error == "bad_grammar"
    assert complaint in caught.value.message


@pytest.mark.parametrize("schema", ["{}", nested(64), '{"$ref": "#/a", "properties": {"$ref": {"type": "string"}}}'])
def test_schemas_pass(schema: str) -> None:
    check_schema(schema)


def test_a_choice_a_regex_and_a_schema_are_grammars() -> None:
    assert [
        has_grammar(SamplingSpec(**kw)) for kw in ({}, {"choice": ["a"]}, {"regex": "a"}, {"json_schema": "{}"})
    ] == [
        False,
        True,
        True,
        True,
    ]


@dataclass
class Embedder:
    """Gives (first token, number of tokens) as the embedding."""

    asked: list[str] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)

    async def __call__(self, request: Request) -> Pooled:
        self.asked.append(request.id)
        try:
            if request.token_ids[0] == 666:
                raise EngineDead("gone")
            if request.token_ids[0] == 404:
                raise RequestRejected("prompt_too_long", "no")
            await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            self.cancelled.append(request.id)
            raise
        vector = struct.pack("<2f", request.token_ids[0], len(request.token_ids))
        return Pooled(request_id=request.id, vector=vector, prompt_tokens=len(request.token_ids))


async def test_the_cosine_of_a_pairs_two_halves() -> None:
    request = replace(REQUEST, token_ids=[3, 1, 1, 1, 4, 1, 1], split=4)
    got = await cosine(request, Embedder())
    assert isinstance(got, Pooled)
    (score,) = struct.unpack("<f", got.vector)
    assert score == pytest.approx((3 * 4 + 4 * 3) / 25)
    assert (got.request_id, got.prompt_tokens) == ("r", 7)


@pytest.mark.parametrize("token, error", [(666, EngineDead), (404, RequestRejected)])
async def test_half_a_pair_that_fails_ends_the_other_half(token: int, error: type[Exception]) -> None:
    embedder = Embedder()
    with pytest.raises(error):
        await cosine(replace(REQUEST, token_ids=[1, 1, token], split=2), embedder)
    await asyncio.sleep(0)
    assert len(embedder.asked) == 2
    assert embedder.cancelled == [embedder.asked[0]]


class Processor:
    """Keeps requests as vLLM's output processor does: not their priority."""

    def __init__(self) -> None:
        self.request_states: dict[str, SimpleNamespace] = {}

    def add_request(self, request: SimpleNamespace, prompt: str | None, queue: object = None) -> None:
        if request.request_id not in self.request_states:
            self.request_states[request.request_id] = SimpleNamespace(is_prefilling=True, prompt_len=3)

    def process_outputs(self, *ended: str) -> None:
        for name in ended:
            self.request_states[name].is_prefilling = False


def test_requests_without_a_token_are_counted_by_whose_turn_it_is() -> None:
    processor = Processor()
    api = VllmApi(SimpleNamespace(output_processor=processor), None, EngineLog(), 1.0, is_thinned=False)
    processor.request_states["before"] = SimpleNamespace(is_prefilling=True, prompt_len=3)
    for number, priority in enumerate([0, 0, 100, 1, 100]):
        processor.add_request(SimpleNamespace(request_id=str(number), priority=priority), "text", queue=None)
    assert api.unbegun() == Unbegun(interactive=3, batch=3)
    processor.process_outputs("0", "2")
    assert api.unbegun() == Unbegun(interactive=2, batch=2)
    assert api.waiting().requests == 4
