"""What is to be seen of a service from outside, its deadlines, and what it answers when it is full: two replicas.

One file, though it is long: all of it asks one service, which takes more than a minute to start.
"""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import httpx
import openai
import pytest
from calls import Client
from collector import collecting
from conftest import read_answers
from contract import run_contract
from jobs import start_verb
from load import load, wrong
from prometheus_client.parser import text_string_to_metric_families
from services import Service, free_port, serving

from serve.keys import Limits, Priority, add_key, make_key

pytestmark = pytest.mark.timeout(400)
SECRET, OTHER = "secret-one", "secret-two"
TRACE = "0af7651916cd43dd8448eb211c80319c"
LONG = {"model": "demo", "prompt": "x", "max_tokens": 1000, "ignore_eos": True, "temperature": 1}
SHORT = {"model": "demo", "prompt": "Zanzibar", "max_tokens": 5, "ignore_eos": True, "temperature": 1}
TEXT = "/v1/completions"


@dataclass(kw_only=True)
class Seen:
    service: Service
    client: httpx.Client
    spans: dict[str, str]
    grpc: str

    text: str = ""
    num_pages: int = 0

    def look(self) -> str:
        """Fetches a page that is made from now on: each replica keeps one for a moment, and counts those fetched."""
        before = self.num_pages
        self.text = self.page()
        while self.total("manta_requests_total", route="/metrics", status="2xx") < before:
            self.text = self.page()
        return self.text

    def page(self) -> str:
        answer = self.client.get("/metrics")
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"].startswith("text/plain")
        self.num_pages += 1
        return answer.text

    def total(self, name: str, **labels: str) -> float:
        """The sum of all replicas' samples of a name that have these labels, on the page that was looked at last."""
        families = text_string_to_metric_families(self.text)
        return sum(
            sample.value
            for family in families
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def replicas(self) -> set[str]:
        families = text_string_to_metric_families(self.text)
        return {sample.labels["replica"] for family in families for sample in family.samples}

    def log(self) -> list[dict]:
        paths = {
            Path(file.path)
            for process in self.service.below()
            for file in process.open_files()
            if Path(file.path).name.startswith("replica_requests_")
        }
        return [json.loads(line) for path in sorted(paths) for line in path.read_text().splitlines()]

    def until(self, is_so: Callable[[], bool], timeout_s: float = 60) -> None:
        deadline = time.monotonic() + timeout_s
        while self.look() and not is_so():
            assert time.monotonic() < deadline, self.text

    def num_running(self) -> float:
        return self.total("vllm:num_requests_running") + self.total("vllm:num_requests_waiting")

    @contextmanager
    def freed(self) -> Iterator[None]:
        """What happens here makes the engine begin an answer, and not finish it."""
        names = ("vllm:generation_tokens_total", "vllm:request_success_total")
        self.until(lambda: self.num_running() == 0)
        tokens, finished = map(self.total, names)
        yield
        self.until(lambda: self.num_running() == 0)
        assert self.total(names[1]) == finished
        assert tokens <= self.total(names[0]) < tokens + LONG["max_tokens"]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    with collecting() as (address, spans):
        port = free_port()
        words = [
            f"deployment.grpc_port={port}",
            *("model=demo", "engine.max_model_len=1024", "engine.max_num_seqs=8", "engine.num_replicas=2"),
            *("deployment.max_ongoing_requests=8", "deployment.max_queued_requests=24"),
            *(f"engine.vllm.otlp_traces_endpoint={address}", "engine.env.OTEL_BSP_SCHEDULE_DELAY=200"),
            "engine.env.OTEL_EXPORTER_OTLP_TRACES_PROTOCOL=http/protobuf",
            *("deployment.vllm.enable_auto_tool_choice=true", "deployment.vllm.tool_call_parser=hermes"),
        ]
        folder = tmp_path_factory.mktemp("service")
        with (
            serving(folder, *words, keys=f"{SECRET},{OTHER}") as service,
            httpx.Client(base_url=service.url, headers={"authorization": f"Bearer {SECRET}"}, timeout=120) as client,
        ):
            yield Seen(service=service, client=client, spans=spans, grpc=f"127.0.0.1:{port}")


def test_the_figures_of_all_replicas_are_on_one_page_and_add_up(seen: Seen):
    other = {"authorization": f"Bearer {OTHER}"}
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda _: seen.client.post(TEXT, json=SHORT), range(24)))
        streams = list(pool.map(lambda _: seen.client.post(TEXT, json={**SHORT, "stream": True}), range(8)))
    assert {answer.status_code for answer in answers + streams} == {200}
    assert all('"usage":{' not in stream.text for stream in streams)  # nobody asked for it
    assert seen.client.post(TEXT, json=SHORT, headers=other).status_code == 200
    assert seen.client.post(TEXT, json={**SHORT, "model": "made-up"}).status_code == 404
    assert seen.client.post(TEXT, json={**SHORT, "max_tokens": -1}).status_code == 400
    assert seen.client.post(TEXT, json=SHORT, headers={"authorization": "Bearer x"}).status_code == 401
    kept = {**SHORT, "temperature": 0}
    for _ in range(8):  # in each replica's memory after a while
        assert seen.client.post(TEXT, json=kept).status_code == 200

    prompt = answers[0].json()["usage"]["prompt_tokens"]
    seen.until(lambda: seen.total("manta_requests_total", route=TEXT) == 24 + 8 + 1 + 8 + 3)
    assert len(seen.replicas()) == 2
    keys = {"key": "environment-1", "model": "demo"}
    assert seen.total("manta_completion_tokens_total", **keys) == 5 * (24 + 8 + 8)
    assert seen.total("manta_prompt_tokens_total", **keys) == prompt * (24 + 8 + 8)
    assert seen.total("manta_completion_tokens_total", key="environment-2") == 5
    assert seen.total("manta_requests_total", status="2xx", route=TEXT, key="environment-1") == 40
    assert seen.total("manta_refused_total", cause="invalid_api_key", key="") == 1
    assert seen.total("manta_refused_total", cause="invalid_value") == 1
    assert seen.total("manta_request_duration_seconds_count", route=TEXT, model="other") == 1
    assert seen.total("manta_time_to_first_token_seconds_count", **keys) == 8
    assert seen.total("manta_time_per_output_token_seconds_count", **keys) == 8
    assert 0 < seen.total("manta_time_per_output_token_seconds_sum", **keys) / 8 < 5
    hits, misses = (seen.total("manta_cache_answers_total", outcome=name) for name in ("hit", "miss"))
    assert (hits + misses, 1 <= misses <= 2) == (8, True)
    assert seen.total("vllm:generation_tokens_total") == 5 * (24 + 8 + 1 + misses)
    assert seen.total("vllm:prefix_cache_queries_total") > 0
    assert "made-up" not in seen.text
    assert SECRET not in seen.text


def test_metrics_are_for_those_who_have_a_key(seen: Seen):
    answer = httpx.get(f"{seen.service.url}/metrics")
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
    assert seen.client.post("/metrics", json={}).status_code == 405


def test_every_answer_has_one_request_id_the_client_s_where_it_is_sane(seen: Seen):
    def id_of(path: str, given: str | None = None, **options) -> str:
        answer = seen.client.request("GET", path, headers={"x-request-id": given} if given else {}, **options)
        (only,) = answer.headers.get_list("x-request-id")
        return only

    for path in ("/v1/models", "/nothing", "/-/routes", "/health"):
        assert id_of(path, "mine.1") == "mine.1"
        assert 16 <= len(id_of(path)) <= 64
        assert id_of(path, "a b") != "a b"
        assert len(id_of(path, "a" * 10_000)) <= 64
    answer = seen.client.post(TEXT, json=SHORT, headers={"x-request-id": "mine.2"})
    assert answer.json()["id"] == "cmpl-mine.2"  # the engine goes by it


def test_a_request_is_a_line_of_the_log_and_a_trace(seen: Seen):
    headers = {"x-request-id": "logged", "traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}
    seen.client.post(TEXT, json={**SHORT, "stream": True}, headers=headers)
    seen.until(lambda: any(line["request_id"] == "logged" for line in seen.log()))
    (line,) = [line for line in seen.log() if line["request_id"] == "logged"]
    assert line["trace_id"] == TRACE
    expected = {"key": "environment-1", "path": TEXT, "status": 200, "model": "demo", "stream": True}
    assert line["completion_tokens"] == 5
    assert expected.items() <= line.items()
    assert 0 < line["ttft_ms"] < line["duration_ms"]
    everything = json.dumps(seen.log())
    assert "Zanzibar" not in everything
    assert SECRET not in everything
    seen.until(lambda: TRACE in seen.spans)


@pytest.mark.parametrize("temperature", [0, 1])
def test_a_deadline_ends_a_request_and_frees_the_engine(seen: Seen, temperature: int):
    with seen.freed():
        begun, ask = time.monotonic(), {**LONG, "temperature": temperature}
        answer = seen.client.post(TEXT, json=ask, headers={"x-request-timeout": "0.5"})
        assert time.monotonic() - begun < 3
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_exceeded")


def test_a_deadline_ends_a_stream_with_an_error_event(seen: Seen):
    with seen.freed():
        answer = seen.client.post(TEXT, json={**LONG, "stream": True}, headers={"x-request-timeout": "0.7"})
    assert answer.status_code == 200
    events = [line.removeprefix("data: ") for line in answer.text.split("\n") if line]
    assert len(events) > 1
    assert json.loads(events[-1])["error"]["code"] == "deadline_exceeded"


@pytest.mark.parametrize("value", ["0", "-1", "soon", "nan", "1e3", "inf", ""])
def test_a_deadline_that_is_no_number_of_seconds_is_400(seen: Seen, value: str):
    answer = seen.client.post(TEXT, json=SHORT, headers={"x-request-timeout": value})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_header")


@pytest.mark.parametrize("change", [{}, {"stream": True}, {"temperature": 0}, {"hint": True}])
def test_a_client_that_leaves_frees_the_engine_at_once(seen: Seen, change: dict):
    hint = {"x-request-disconnect-disabled": "?1"} if "hint" in change else {}
    ask = {**LONG, **{name: value for name, value in change.items() if name != "hint"}}
    request = seen.client.build_request("POST", TEXT, json=ask, headers=hint)
    lines = [f"POST {TEXT} HTTP/1.1", *(f"{name}: {value}" for name, value in request.headers.items()), "", ""]
    with seen.freed(), socket.create_connection((request.url.host, request.url.port or 80)) as connection:
        begun = seen.total("vllm:generation_tokens_total")
        connection.sendall("\r\n".join(lines).encode() + request.content)
        seen.until(lambda: seen.total("vllm:generation_tokens_total") > begun)


def test_a_full_service_says_so_in_openai_s_shape_and_when_to_come_again_and_its_page_does_not_wait(seen: Seen):
    def ask(_: int) -> httpx.Response:
        return httpx.post(
            f"{seen.service.url}{TEXT}", json={**LONG, "max_tokens": 150}, headers=seen.client.headers, timeout=200
        )

    took = []
    with ThreadPoolExecutor(100) as pool:  # 40 have room; a slow machine ends some before the last come
        asked = [pool.submit(ask, number) for number in range(100)]
        seen.until(lambda: seen.num_running() == 16)  # all that both replicas take
        for _ in range(6):
            began = time.monotonic()
            seen.text = seen.page()
            took.append(time.monotonic() - began)
            assert len(seen.replicas()) == 2
        # some still wait in front of them
        assert sum(not each.done() for each in asked) > 16
        answers = [each.result() for each in asked]
    assert max(took) < 1.0, took
    statuses = Counter(answer.status_code for answer in answers)
    assert set(statuses) == {200, 503}
    assert statuses[200] >= 4  # those that fit into the queue: the others came before a replica had taken any
    for answer in answers:
        if answer.status_code == 503:
            assert answer.json()["error"]["code"] == "overloaded"
            assert int(answer.headers["retry-after"]) >= 1
            assert answer.headers["x-request-id"]


@pytest.mark.slow
def test_a_job_has_its_rows_answered_by_the_service_and_the_interactive_ones_go_on(seen: Seen, tickets: Path):
    out = tickets.parent / "out"
    where = ["engine=service", f"engine.service.url={seen.service.url}", "engine.max_in_flight=12"]
    words = ["model=demo", *where, "data=tickets", f"data.input={tickets}", f"output.path={out}"]
    job = start_verb("batch", *words, "sampling.max_tokens=48", environment={"MANTA_API_KEY": OTHER})
    interactive = []
    while job.poll() is None:
        interactive.append(seen.client.post(TEXT, json={**SHORT, "stream": True}))
        time.sleep(0.2)
    said = job.communicate()
    assert job.returncode == 0, said
    assert {answer.status_code for answer in interactive} == {200}
    answers = read_answers(out)
    assert len(answers) == 40
    assert all(answer["output"] for answer in answers)
    seen.look()
    assert seen.total("manta_completion_tokens_total", key="environment-2") >= sum(
        a["completion_tokens"] for a in answers
    )
    assert seen.total("manta_requests_held") == 0
    assert not [path for path in out.rglob("*") if path.is_file() and OTHER.encode() in path.read_bytes()]


@pytest.mark.slow
def test_the_service_keeps_the_engines_contract(seen: Seen):
    service = {"url": seen.service.url, "model": "demo"}
    said = asyncio.run(run_contract({"kind": "service", "service": service}, api_key=SECRET))
    failures = {name: failure for name, failure in said["checks"].items() if failure is not None}
    assert not failures, "\n".join(failures.values())


def test_what_the_proxy_says_by_itself_tells_nothing_of_the_service(seen: Seen):
    answer = seen.client.get("/-/routes")
    assert (answer.status_code, answer.json()["error"]["type"]) == (404, "not_found_error")


def test_grpc_says_what_http_says(seen: Seen):
    ask = {**SHORT, "temperature": 0}
    text = seen.client.post(TEXT, json=ask).json()["choices"][0]["text"]
    with Client(seen.grpc, SECRET) as client:
        assert [model.id for model in client.models()] == ["demo"]
        answer, metadata = client.complete(**ask)
        assert (answer.choices[0].text, answer.usage.completion_tokens) == (text, 5)
        assert metadata["x-request-id"] == "by-grpc"
        assert "".join(part.choices[0].text for part in client.stream(**ask)) == text
        assert client.chat(messages=[{"role": "user", "content": "x"}], max_tokens=3).usage.completion_tokens <= 3
    seen.until(lambda: any(line["request_id"] == "by-grpc" for line in seen.log()))


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_call_that_is_refused_has_grpc_s_status_and_no_internals(seen: Seen, is_stream: bool):
    with Client(seen.grpc, SECRET) as client, Client(seen.grpc, "wrong") as stranger:
        for who, change, code, cause in (
            (stranger, {}, "UNAUTHENTICATED", "invalid_api_key"),
            (client, {"model": "nope"}, "NOT_FOUND", None),
            (client, {"model": "../adapter"}, "NOT_FOUND", "model_not_found"),
            (client, {"max_tokens": -1}, "INVALID_ARGUMENT", "invalid_value"),
            (client, {"extra_json": "{"}, "INVALID_ARGUMENT", "invalid_body"),
        ):
            failed = who.refused(is_stream, **{**SHORT, **change})
            assert failed.code == code
            assert cause in (None, failed.cause)
            inner = ("Traceback", "Replica", "127.0.0.1", "site-packages", "ray::")
            assert not any(word in failed.details for word in inner), failed.details
        assert client.refused(is_stream, **{**SHORT, "prompt": "x" * (5 << 20)}).code == "RESOURCE_EXHAUSTED"
        assert client.lists_applications() == "UNIMPLEMENTED"


@pytest.mark.parametrize("by", ["leaving", "deadline"])
def test_a_call_that_is_left_or_takes_too_long_frees_the_engine(seen: Seen, by: str):
    with seen.freed(), Client(seen.grpc, SECRET) as client:
        if by == "deadline":
            assert client.refused(True, timeout=1.0, **LONG).code == "DEADLINE_EXCEEDED"
        else:
            client.leave(**LONG)


def test_a_key_s_limits_are_those_of_all_replicas_together(seen: Seen):
    made = make_key("limited", Limits(requests_per_min=6), Priority.interactive, None, datetime.now(UTC))
    limited = {"authorization": f"Bearer {add_key(seen.service.log.parent / 'keys.json', made)}"}
    time.sleep(1.5)  # a key file is looked at every second
    statuses = []
    for _ in range(14):  # with limits of its own each of the two replicas would answer six
        statuses.append(seen.client.get("/v1/models", headers=limited).status_code)
        time.sleep(0.35)  # they look at each other's counts every 0.25 s
    assert set(statuses) == {200, 429}
    assert 6 <= statuses.count(200) <= 7, statuses


async def test_a_dead_engine_costs_no_answer_and_its_streams_end_with_an_error(seen: Seen):
    def kill(number: int) -> None:
        if number == 48:
            seen.service.named("VLLM::EngineCore")[-1].kill()

    base = f"{seen.service.url}/v1"
    async with openai.AsyncOpenAI(base_url=base, api_key=SECRET, max_retries=0, timeout=120) as client:
        outcomes = await load(client, 96, 20, kill)  # one replica and the queue have room for them
        broken = Counter((outcome.is_stream, repr(outcome.error)) for outcome in outcomes if outcome.error is not None)
        assert all(is_stream and said.startswith("APIError") for is_stream, said in broken), broken  # a stream's event
        assert await wrong(client, outcomes) == []
