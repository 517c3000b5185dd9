"""What a service is sent that nobody means: requests made of its own OpenAPI document, and broken bodies of any format.

An answer may be an error of the client's, the engine's answer, or the deadline that each of these requests has. It may
not be a crash, another 5xx, or an error that OpenAI's clients cannot read.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import httpx
import msgspec
import pyarrow as pa
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode

from serve.wire import flatbuffer, protobuf
from serve.wire.formats import EMBEDDINGS, ENDPOINTS, MEDIA_TYPES, Format, media_types
from serve.wire.shape import shape_of

HEADERS = {"x-request-timeout": "2"}
LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens", "n", "best_of")
CHAT = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2, "temperature": 0.5, "stop": ["a", "b"]}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": "demo", **CHAT, "tools": [TOOL], "tool_choice": "none", "logit_bias": {"5": 1.0}},
    "/v1/completions": {"model": "demo", "prompt": ["Hi", "Ho"], "max_tokens": 2, "seed": 7, "logprobs": 1},
    EMBEDDINGS: {"model": "demo", "input": ["Hi", "Ho"]},
    "/tokenize": {"model": "demo", "prompt": "Hi", "add_special_tokens": True},
    "/detokenize": {"model": "demo", "tokens": [1, 2, 3]},
}
"""Good ones, that are broken."""
CLOSED = [
    "/metrics/",
    "/load",
    "/version",
    "/docs",
    "/collective_rpc",
    "/reset_prefix_cache",
    "/sleep",
    "/pause",
    "/update_weights",
    "/v1/load_lora_adapter",
    "/v1/unload_lora_adapter",
    "/invocations",
    "/ping",
    "/start_profile",
    "/scale_elastic_ep",
    "/v1/models/",
    "/v1/models/../load",
    "/%76ersion",
    "//v1/models",
]
"""Paths that vLLM has, or that lead to them in another way."""


def _client(url: str, key: str) -> httpx.Client:
    return httpx.Client(base_url=url, headers={**HEADERS, "authorization": f"Bearer {key}"}, timeout=60)


def _settled(num_examples: int) -> settings:
    return settings(
        max_examples=num_examples,
        derandomize=num_examples < 20,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


def check(answer: httpx.Response, asked: object) -> None:
    """Fails for an answer that may not be."""
    status, said = answer.status_code, (answer.status_code, answer.text[:500], asked)
    if status < 400:
        return
    assert answer.headers["content-type"].startswith("application/json"), said
    error = answer.json()["error"]
    assert isinstance(error["message"], str), said
    assert {"message", "type"} <= set(error) <= {"message", "type", "param", "code"}, said
    assert "Traceback" not in error["message"], said
    assert status < 500 or (status, error["code"]) == (504, "deadline_exceeded"), said


def fuzz_operations(url: str, num_examples: int, key: str = "none") -> dict[str, Counter[int]]:
    """Sends each operation of a service what its OpenAPI document allows, and what it does not.

    Args:
        url: of the service.
        num_examples: of each kind for each operation; few are the same ones each time.
        key: for the service.

    Returns:
        By path, how many answers had which status.
    """
    statuses: dict[str, Counter[int]] = {}
    with _client(url, key) as client:
        document = client.get("/openapi.json").json()
        for result in schemathesis.openapi.from_dict(document).get_all_operations():
            operation = result.ok()
            modes = list(GenerationMode) if operation.body else [GenerationMode.POSITIVE]
            for mode in modes:
                cases = operation.as_strategy(generation_mode=mode)
                _fuzz_operation(cases, client, num_examples, statuses.setdefault(operation.path, Counter()))
    return statuses


def _fuzz_operation(cases: st.SearchStrategy[Any], client: httpx.Client, num_examples: int, statuses: Counter) -> None:
    @_settled(num_examples)
    @given(case=cases)
    def ask(case: Any) -> None:
        if isinstance(case.body, dict):  # the engine has other work than long answers
            case.body.update({name: min(case.body[name], 4) for name in LIMITS if _is_long(case.body.get(name))})
            if case.path.endswith("completions"):
                case.body.setdefault("max_tokens", 2)
        sent = case.as_transport_kwargs(base_url=str(client.base_url))
        kind = {} if case.media_type is None else {"content-type": case.media_type}
        path = case.path.format_map(case.path_parameters or {})
        if sent.get("files"):  # a form, whose type names its boundary
            answer = client.request(sent["method"], path, params=sent.get("params"), files=_form(sent["files"]))
        else:
            answer = client.request(sent["method"], path, params=sent.get("params"), content=_raw(sent), headers=kind)
        check(answer, case.body)
        statuses[answer.status_code] += 1

    ask()


def fuzz_formats(url: str, num_examples: int, key: str = "none") -> dict[tuple[str, str], Counter[int]]:
    """Sends each endpoint bodies in each format that were cut short, overwritten, or never were any.

    Args:
        url: of the service.
        num_examples: for each endpoint and format; few are the same ones each time.
        key: for the service.

    Returns:
        By path and type, how many answers had which status.
    """
    kinds = ("application/json", *{format: name for name, format in MEDIA_TYPES.items()}.values())
    statuses: dict[tuple[str, str], Counter[int]] = {}
    with _client(url, key) as client:
        for path in BODIES:
            for kind in kinds:
                if kind == "application/json" or kind in media_types(path):
                    _fuzz_format(path, kind, client, num_examples, statuses.setdefault((path, kind), Counter()))
    return statuses


def _fuzz_format(path: str, kind: str, client: httpx.Client, num_examples: int, statuses: Counter) -> None:
    @_settled(num_examples)
    @given(raw=_broken(encoded(MEDIA_TYPES.get(kind, Format.json), path)))
    def ask(raw: bytes) -> None:
        headers = {"content-type": kind, "accept": f"{kind}, application/json;q=0.5"}
        answer = client.post(path, content=raw, headers=headers)
        check(answer, raw)
        statuses[answer.status_code] += 1

    ask()


def encoded(format: Format, path: str) -> bytes:
    """Returns a good body of an endpoint."""
    body, shape = BODIES[path], shape_of(ENDPOINTS[path][0])
    match format:
        case Format.json:
            return msgspec.json.encode(body)
        case Format.messagepack:
            return msgspec.msgpack.encode(body)
        case Format.protobuf:
            return protobuf.encode(body, shape)
        case Format.flatbuffers:
            return flatbuffer.encode(body, shape)
        case _:
            table = pa.table({"input": body["input"]}, metadata={"model": body["model"]})
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, table.schema) as writer:
                writer.write_table(table)
            return sink.getvalue().to_pybytes()


@st.composite
def _broken(draw: st.DrawFn, whole: bytes) -> bytes:
    match draw(st.integers(0, 3)):
        case 0:
            return whole[: draw(st.integers(0, len(whole) - 1))]
        case 1:
            return draw(st.binary(max_size=100))
        case 2:
            return whole + draw(st.binary(min_size=1, max_size=20))
        case _:
            place = draw(st.integers(0, len(whole) - 1))
            other = draw(st.binary(min_size=1, max_size=4) | st.sampled_from([b"\xff" * 4, b"\0\0\0\x80"]))
            return whole[:place] + other + whole[place + len(other) :]


def _is_long(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 4


def _form(parts: Any) -> list[tuple[str, Any]]:
    """Returns a form's parts as httpx takes them: what is neither text nor bytes is sent as text."""

    def plain(value: Any) -> Any:
        if isinstance(value, tuple):
            return (value[0], plain(value[1]))
        return value if isinstance(value, (str, bytes)) else json.dumps(value)

    pairs = parts.items() if isinstance(parts, dict) else parts
    return [(name, plain(value)) for name, value in pairs]


def _raw(sent: dict[str, Any]) -> bytes | None:
    if sent.get("json") is not None:
        return json.dumps(sent["json"]).encode()  # which can say what msgspec refuses: half a surrogate pair
    data = sent.get("data")
    return data.encode() if isinstance(data, str) else data
