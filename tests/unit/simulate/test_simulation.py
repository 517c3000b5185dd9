from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conf import cli
from conf.errors import UserError
from conf.schema.autoscale import AutoscalePolicy, AutoscaleSpec
from conf.schema.simulate import ReplicaSpec, SimulateJob
from pipelines.simulate.fleet import Fleet
from pipelines.simulate.replica import IDLE, SimulatedReplica
from pipelines.simulate.score import direction_changes, fixed, follow_policy, score, simulate
from pipelines.simulate.trace import Trace, read_trace, replayed
from serve.autoscale.observation import Decision, Observation

calm = settings(
    deadline=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
SMALL = ReplicaSpec(step_tokens=64, max_num_seqs=4, kv_tokens=400, start_s=5.0, step_s=0.01)


def trace_of(rows: list[tuple[float, int, int]]) -> Trace:
    arrival, prompt, answer = (np.array(column) for column in zip(*sorted(rows), strict=True))
    return Trace(arrival_s=arrival.astype(float), prompt=prompt.astype(np.int64), answer=answer.astype(np.int64))


def step_by_step(trace: Trace, spec: ReplicaSpec) -> tuple[dict[int, float], dict[int, float]]:
    """One engine, every step of it: what the simulator's stretches have to agree with."""
    waiting, prefilling, answering = [], [], {}
    arrivals = list(zip(trace.arrival_s.tolist(), trace.prompt.tolist(), trace.answer.tolist(), strict=True))
    first, end, now, at, free = {}, {}, 0.0, 0, spec.kv_tokens
    while len(end) < len(arrivals):
        if not (waiting or prefilling or answering):
            now = max(now, arrivals[at][0])
        while at < len(arrivals) and arrivals[at][0] <= now + 1e-12:
            waiting.append(at)
            at += 1
        while waiting and len(prefilling) + len(answering) < spec.max_num_seqs:
            _, prompt, answer = arrivals[waiting[0]]
            if prompt + answer > free:
                break
            free -= prompt + answer
            prefilling.append([waiting.pop(0), prompt])
        budget = room = spec.step_tokens - len(answering)
        done = []
        while prefilling and budget:
            chunk = min(budget, prefilling[0][1])
            prefilling[0][1] -= chunk
            budget -= chunk
            if prefilling[0][1]:
                break
            done.append(prefilling.pop(0)[0])
        now += spec.step_s + len(answering) * spec.answer_token_s + (room - budget) / spec.prefill_tokens_per_s
        for number in answering:
            answering[number] -= 1
        for number in done:
            first[number] = now
            answering[number] = arrivals[number][2] - 1
        for number in [number for number, left in answering.items() if left <= 0]:
            del answering[number]
            end[number] = now
            free += arrivals[number][1] + arrivals[number][2]
    return first, end


def read_or_line(path: Path) -> Trace | None:
    """The trace, or nothing where the mistake is told in one line."""
    try:
        return read_trace(str(path))
    except UserError as error:
        told = str(error)
    assert "\n" not in told
    return None


requests = st.lists(st.tuples(st.floats(0, 20), st.integers(1, 300), st.integers(1, 100)), min_size=1, max_size=40)


@calm
@given(rows=requests)
def test_a_replica_is_exact_to_the_step(rows):
    trace = trace_of(rows)
    run = Fleet(trace, replace(SMALL, max_ongoing_requests=10_000), AutoscaleSpec(), 1).run(fixed(1))
    first, end = step_by_step(trace, SMALL)
    assert run.first_s == pytest.approx([first[at] for at in range(len(trace))], abs=0.02)
    assert run.end_s == pytest.approx([end[at] for at in range(len(trace))], rel=0.02, abs=0.05)


@calm
@given(rows=requests, sizes=st.lists(st.integers(0, 6), min_size=1, max_size=30))
def test_every_request_ends_once_whatever_the_fleet_does(rows, sizes):
    trace = trace_of(rows)
    at = iter(sizes)
    run = Fleet(trace, SMALL, AutoscaleSpec(), 1).run(lambda seen: Decision(target=next(at, 2), reason="drawn"))
    assert not np.isnan(run.end_s).any()
    assert (run.first_s > trace.arrival_s).all()
    assert (run.end_s >= run.first_s).all()
    assert 0 < run.busy_s <= run.replica_s + 1e-6
    # a prompt's tokens take their time whoever computes them
    assert run.busy_s >= trace.prompt.sum() / SMALL.prefill_tokens_per_s - 1e-6


@calm
@given(rows=requests)
def test_an_engine_tells_of_each_request_once(rows):
    engine, now, begun, ended = SimulatedReplica(SMALL), 0.0, [], []
    for number, (arrival, prompt, answer) in enumerate(sorted(rows)):
        while engine.next_s <= arrival:
            now = engine.next_s
            told = engine.advance()
            begun += told.begun
            ended += told.ended
        engine.add(number, prompt, answer, max(now, arrival))
    while engine.next_s != IDLE:
        told = engine.advance()
        begun += told.begun
        ended += told.ended
    assert sorted(begun) == sorted(ended) == list(range(len(rows)))
    assert engine.is_idle


def test_one_replica_waits_as_queueing_theory_says():
    """Prompts alone, equal, one a step: M/D/1. Mean wait = load x service / (2 (1 - load))."""
    rng = np.random.default_rng(0)
    service, load, count = 0.1 + 0.01, 0.7, 40_000
    arrival = np.cumsum(rng.exponential(service / load, count))
    ones = np.ones(count, dtype=np.int64)
    trace = Trace(arrival_s=arrival, prompt=100 * ones, answer=ones)
    spec = ReplicaSpec(
        prefill_tokens_per_s=1000, step_s=0.01, step_tokens=100, max_num_seqs=99, max_ongoing_requests=10**6
    )
    run = Fleet(trace, spec, AutoscaleSpec(interval_s=60), 1).run(fixed(1))
    wait = float((run.first_s - arrival).mean()) - service
    assert wait == pytest.approx(load * service / (2 * (1 - load)), rel=0.08)
    assert run.busy_s == pytest.approx(count * service, rel=1e-6)


def test_a_replica_is_ready_when_its_start_up_is_over_and_paid_for_from_the_decision():
    trace = trace_of([(0.0, 10, 1), (1.0, 10, 1)])
    run = Fleet(trace, SMALL, AutoscaleSpec(interval_s=2), 0).run(fixed(1))
    assert run.first_s[0] == pytest.approx(5.0, abs=0.1)
    assert run.replica_s == pytest.approx(run.seconds)


@pytest.mark.parametrize(("report_s", "seen"), [(0.0, [0, 1, 2, 3]), (1.0, [0, 0, 1, 2]), (10.0, [0, 0, 0, 3])])
def test_a_decision_knows_what_replicas_last_told(report_s: float, seen: list[int]):
    """Requests come at 0.5, 1.5 and 2.5 s, and are still answered at 3 s."""
    trace = trace_of([(at + 0.5, 10, 99) for at in range(3)])
    told: list[tuple[int, float]] = []

    def step(observation: Observation) -> Decision:
        told.append((observation.requests, observation.metrics_age_s))
        return Decision(target=1, reason="")

    Fleet(trace, replace(SMALL, step_s=0.1), AutoscaleSpec(interval_s=1), 1, report_s).run(step)
    assert [requests for requests, _ in told[:4]] == seen
    assert all(age_s == (0.75 * report_s if at else 0) or report_s > 1 for at, (_, age_s) in enumerate(told))


def test_scale_to_zero_loses_nothing():
    trace = trace_of([(0.0, 10, 5), (900.0, 10, 5)])
    spec = AutoscaleSpec(policy=AutoscalePolicy.tokens, min_replicas=0)
    job = SimulateJob(trace="x", autoscale=spec, replica=SMALL)
    run = simulate(trace, job, follow_policy(spec), 1)
    figures = score("tokens", trace, run, job)
    assert figures.dropped == 0
    assert run.replica_s < 400
    assert run.first_s[1] - 900 == pytest.approx(5.0, abs=2.5)


def test_direction_changes():
    assert direction_changes([1, 2, 2, 3, 3, 2, 2, 1, 4]) == 2
    assert direction_changes([3, 3, 3]) == 0


def test_azure_mooncake_and_plain_columns_are_the_same_trace(tmp_path: Path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    azure = tmp_path / "a.csv"
    azure.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\r\n"
        "2023-11-16 18:15:46.5000000,374,44\r\n2023-11-16 18:15:48.0000000,9,0\r\n"
    )
    mooncake = tmp_path / "m.jsonl"
    mooncake.write_text(
        '{"timestamp": 1500, "input_length": 9, "output_length": 0}\n\n'
        '{"timestamp": 0, "input_length": 374, "output_length": 44}\n'
    )
    table = tmp_path / "t.parquet"
    pq.write_table(pa.table({"arrival_s": [7.0, 8.5], "prompt_tokens": [374, 9], "answer_tokens": [44, 1]}), table)
    for path in (azure, mooncake, table):
        trace = read_trace(str(path))
        assert trace.arrival_s.tolist() == pytest.approx([0, 1.5])
        assert (trace.prompt.tolist(), trace.answer.tolist()) == ([374, 9], [44, 1])


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
@calm
@given(
    content=st.one_of(st.binary(max_size=300), st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace")))
)
def test_whatever_a_file_holds_is_a_trace_or_one_line(tmp_path: Path, suffix: str, content: bytes):
    head = b"arrival_s,prompt_tokens,answer_tokens\n" if suffix == ".csv" else b""
    path = tmp_path / f"t{suffix}"
    path.write_bytes(head + content)
    trace = read_or_line(path)
    assert trace is None or len(trace) > 0


cell = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.lists(st.integers(), max_size=2)
)


@calm
@given(rows=st.lists(st.tuples(cell, cell, cell), min_size=1, max_size=4))
def test_whatever_the_columns_hold_is_a_trace_or_one_line(tmp_path: Path, rows):
    path = tmp_path / "t.jsonl"
    names = ("arrival_s", "prompt_tokens", "answer_tokens")
    path.write_text("\n".join(json.dumps(dict(zip(names, row, strict=True))) for row in rows))
    trace = read_or_line(path)
    if trace is not None:
        assert np.isfinite(trace.arrival_s).all()
        assert (np.diff(trace.arrival_s) >= 0).all()
        assert min(trace.prompt.min(), trace.answer.min()) >= 1


@calm
@given(copies=st.integers(1, 5), speed_up=st.floats(0.1, 10))
def test_copies_keep_the_tokens_and_the_length(copies, speed_up):
    trace = trace_of([(0.0, 5, 1), (10.0, 7, 2), (30.0, 1, 1)])
    more = replayed(trace, copies, 1.0, speed_up, 0)
    assert more.prompt.sum() == copies * trace.prompt.sum()
    assert (np.diff(more.arrival_s) >= 0).all()
    assert more.seconds <= trace.seconds / speed_up + 1e-9


def test_the_verb_prints_json_and_writes_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "t.csv"
    rows = "".join(f"{at / 4},500,20\n" for at in range(200))
    path.write_text("arrival_s,prompt_tokens,answer_tokens\n" + rows)
    plot = tmp_path / "fleet.html"
    words = ["simulate", f"trace={path}", "autoscale=tokens", "cluster.price_per_hour=2", f"simulate.plot_file={plot}"]
    assert cli.main([*words, "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert [each["name"] for each in figures["scores"]] == ["tokens", "fixed peak", "fixed mean"]
    first = figures["scores"][0]
    assert (first["dropped"], first["ttft_attained"]) == (0, 1.0)
    assert first["cost"] == pytest.approx(2 * first["replica_hours"])
    assert "<polyline" in plot.read_text()
    assert cli.main(words) == 0
    assert "replica-hours" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words, line",
    [
        (["trace=none.csv"], "trace=none.csv: cannot be read: No such file or directory"),
        (["trace=t.txt"], "trace=t.txt: must end in .csv, .jsonl, .parquet"),
        ([], "trace must be set"),
        (["trace=t.csv", "replica.step_s=0"], "replica.step_s must be > 0, got 0.0"),
    ],
)
def test_mistakes_are_one_line(words, line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["simulate", *words]) == 2
    error = capsys.readouterr().err
    assert line in error
    assert len(error.splitlines()) == 1


def test_a_request_that_no_replica_can_hold_is_refused(tmp_path, capsys):
    path = tmp_path / "t.csv"
    path.write_text("arrival_s,prompt_tokens,answer_tokens\n0,500000,20\n")
    assert cli.main(["simulate", f"trace={path}"]) == 2
    assert "replica.kv_tokens must be >= 500,020, the trace's longest request" in capsys.readouterr().err
