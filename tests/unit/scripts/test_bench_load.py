from __future__ import annotations

import asyncio
import json
import statistics
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "scripts"))

import bench_answers as a  # noqa: E402
import bench_load as load  # noqa: E402
import bench_vllm_load as theirs  # noqa: E402


def _event(**body: object) -> bytes:
    return b"data: " + json.dumps(body).encode() + b"\n\n"


def _delta(**delta: object) -> bytes:
    return _event(choices=[{"index": 0, "delta": delta}])


USAGE = _event(choices=[], usage={"prompt_tokens": 5, "completion_tokens": 3})
STREAM = [
    _delta(role="assistant", content=""),
    b": still here\n\n",
    _delta(content="a b"),
    _delta(content=""),
    USAGE,
    b"data: [DONE]\n\n",
]
CHUNKS = sum(map(len, STREAM))


def _read(chunks: list[bytes]) -> a.EventReader:
    reader = a.EventReader(seen=a.Seen(start_s=0.0))
    for now, chunk in enumerate(chunks):
        reader.feed(chunk, float(now))
    return reader


def test_a_role_alone_is_no_token_and_the_usage_says_how_many_there_were():
    reader = _read(STREAM)
    seen = reader.seen
    assert (seen.first_s, seen.last_s) == (2.0, 3.0)
    assert (seen.prompt_tokens, seen.tokens) == (5, 3)
    assert reader.is_done
    assert seen.error is None


@given(st.lists(st.integers(1, CHUNKS - 1), max_size=12, unique=True))
def test_it_does_not_matter_how_a_stream_is_cut(cuts: list[int]):
    whole = b"".join(STREAM)
    ends = [0, *sorted(cuts), len(whole)]
    reader = _read([whole[start:end] for start, end in pairwise(ends)])
    assert (reader.seen.tokens, reader.is_done, reader.seen.first_s is not None) == (3, True, True)


def test_a_broken_stream_and_an_error_in_it_are_told():
    assert not _read(STREAM[:3]).is_done
    assert "dead" in str(_read([_event(error={"message": "the engine is dead"})]).seen.error)
    with pytest.raises(ValueError, match=r"JSON|malformed"):
        _read([b"data: {not json\n\n"])


@given(st.lists(st.floats(0, 1e6), min_size=2, max_size=50))
def test_percentiles_are_those_of_the_standard_library(values: list[float]):
    assert a.percentile(values, 50) == pytest.approx(statistics.median(values))
    expected = statistics.quantiles(values, n=100, method="inclusive")[98]
    assert a.percentile(values, 99) == pytest.approx(expected)
    assert (a.percentile(values, 0), a.percentile(values, 100)) == (min(values), max(values))


def test_no_values_have_no_percentile():
    assert a.percentile([7.0], 99) == 7.0
    with pytest.raises(ValueError, match="no values"):
        a.percentile([], 50)


def _seen(start_s: float, tokens: int = 5, **more: object) -> a.Seen:
    times = {"first_s": start_s + 0.1, "last_s": start_s + 0.5, "end_s": start_s + 0.6}
    return a.Seen(start_s=start_s, tokens=tokens, prompt_tokens=7, **{**times, **more})  # type: ignore[arg-type]


def test_figures_are_work_over_the_time_from_the_first_request_to_the_last_answer():
    found = a.figures([_seen(10.0), _seen(11.4)], 5)
    assert (found["requests"], found["completion_tokens"], found["prompt_tokens"]) == (2, 10, 14)
    assert found["seconds"] == pytest.approx(2.0)
    assert (found["requests_per_s"], found["tokens_per_s"]) == pytest.approx((1.0, 5.0))
    assert (found["ttft_p50_ms"], found["tpot_p50_ms"], found["e2e_p99_ms"]) == pytest.approx((100, 100, 600))


def test_without_streaming_there_is_no_first_token():
    found = a.figures([_seen(0.0, first_s=None, last_s=None)], 5)
    assert found["e2e_p50_ms"] == pytest.approx(600)
    assert not {"ttft_p50_ms", "tpot_p50_ms"} & set(found)


@pytest.mark.parametrize(("bad", "why"), [({"tokens": 4}, "4 tokens instead of 5"), ({"error": "status 503"}, "503")])
def test_one_bad_answer_fails_the_load(bad: dict, why: str):
    with pytest.raises(ValueError, match=rf"1 of 3 requests failed.*{why}"):
        a.figures([_seen(0.0), _seen(0.0, **bad), _seen(0.0)], 5)


def test_arrivals_are_a_poisson_process():
    times = load.arrivals(50.0, 4000, seed=3)
    gaps = [later - sooner for sooner, later in pairwise(times)]
    assert times[0] == 0
    assert min(gaps) >= 0
    assert statistics.mean(gaps) == pytest.approx(1 / 50, rel=0.1)
    assert statistics.stdev(gaps) == pytest.approx(1 / 50, rel=0.1)  # of an exponential both are equal
    assert times == load.arrivals(50.0, 4000, seed=3)
    assert times != load.arrivals(50.0, 4000, seed=4)


@pytest.mark.parametrize("text", ["closed:32", "closed:32:stream", "open:12.5:stream", "open:3"])
def test_a_load_is_called_what_it_is_parsed_from(text: str):
    assert load.Load.parse(text).name == text


@pytest.mark.parametrize(
    "text", ["closed", "closed:0", "closed:1.5", "open:inf", "open:-1", "shut:3", "open:1:fast", ""]
)
def test_mistaken_loads_are_refused(text: str):
    with pytest.raises(ValueError, match="no closed:CLIENTS"):
        load.Load.parse(text)


def _task(what: str, key: str = "") -> load.LoadTask:
    return load.LoadTask(url="http://x", model="m", prompts=["a", "b"], output_tokens=9, load=what, key=key)


def test_a_request_asks_for_a_fixed_answer_and_its_usage():
    body = json.loads(_task("closed:2:stream").body("a"))
    assert (body["max_tokens"], body["ignore_eos"], body["temperature"]) == (9, True, 0)
    assert body["stream_options"] == {"include_usage": True}
    assert "stream" not in json.loads(_task("closed:2").body("a"))
    assert _task("closed:2", key="sk").headers["authorization"] == "Bearer sk"
    assert "authorization" not in _task("closed:2").headers


def test_closed_clients_have_one_request_each_and_an_open_loop_does_not_wait():
    under_way, most = 0, 0

    async def ask(body: bytes) -> a.Seen:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        for _ in range(5):
            await asyncio.sleep(0)
        under_way -= 1
        return a.Seen(start_s=float(body))

    bodies = [str(number).encode() for number in range(40)]
    seen = asyncio.run(load._closed(ask, bodies, 4))
    assert most == 4
    assert sorted(request.start_s for request in seen) == list(range(40))
    assert len(asyncio.run(load._open(ask, bodies, [0.0] * 40))) == 40
    assert most == 40


def test_vllm_s_generator_gets_the_same_load(tmp_path: Path):
    def option(words: list[str], name: str) -> str:
        return words[words.index(name) + 1]

    words = theirs.command_line(_task("closed:2:stream"), tmp_path / "prompts.jsonl", "tokenizer")
    assert (option(words, "--max-concurrency"), option(words, "--num-prompts")) == ("2", "2")
    assert "--request-rate" not in words
    words = theirs.command_line(_task("open:7.5:stream"), tmp_path / "prompts.jsonl", "tokenizer")
    assert option(words, "--request-rate") == "7.5"
    with pytest.raises(ValueError, match="always streams"):
        theirs.command_line(_task("closed:2"), tmp_path, "tokenizer")


RESULT = {
    **{"completed": 2, "total_output_tokens": 18, "total_input_tokens": 4, "duration": 2.0},
    **{"request_throughput": 1.0, "output_throughput": 9.0},
    **{f"p{p}_{name}_ms": p + len(name) for name in ("ttft", "tpot", "e2el") for p in (50, 99)},
}


def test_vllm_s_figures_have_our_names_and_its_failures_fail():
    found = theirs.converted(RESULT, _task("closed:2:stream"))
    assert (found["requests_per_s"], found["e2e_p99_ms"], found["ttft_p50_ms"]) == (1.0, 103, 54)
    own = set(a.figures([_seen(0.0)], 5))
    assert own <= set(found)
    with pytest.raises(ValueError, match=r"1 of 2 requests failed.*boom"):
        theirs.converted({**RESULT, "completed": 1, "errors": ["", "boom"]}, _task("closed:2:stream"))
    with pytest.raises(ValueError, match="17 tokens instead of 18"):
        theirs.converted({**RESULT, "total_output_tokens": 17}, _task("closed:2:stream"))
