"""`manta batch` as people run it: a process of its own, a real Ray, an engine that fails on demand."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from conftest import read_answers
from jobs import computed, manta, questions, read_failed, record, start, wait_for_computed

pytestmark = pytest.mark.timeout(240)  # each starts a Ray of its own: 15 s on a quiet machine, more on a busy one


def test_bad_rows_become_dead_letters_and_the_others_are_answered(tmp_path: Path) -> None:
    lines = [
        '{"question": "first", "n": 1}',
        '{"question": "broken, "n": 2}',
        '{"question": "", "n": 3}',
        '{"question": null, "n": 4}',
        '{"question": ["a", "list"], "n": 5}',
        json.dumps({"question": "long " * 5000, "n": 6}),
        '{"question": "refuse me", "n": 7}',
        '{"question": "last", "n": 8}',
    ]
    source = tmp_path / "in.jsonl"
    source.write_text("\n".join(lines))
    out = tmp_path / "out"
    done = manta(f"data.input={source}", f"output.path={out}", "engine.fault.reject_marker=refuse")
    assert done.returncode == 3, done.stderr
    answers = read_answers(out)
    assert [row["question"] for row in answers] == ["first", "last"]
    assert answers[0].keys() == {
        *("question", "n", "output", "finish_reason", "prompt_tokens", "completion_tokens", "request_key", "row_id")
    }
    failed = {row["position"]: row for row in read_failed(out)}
    assert {position: row["error"] for position, row in failed.items()} == {
        2: "malformed_line",
        3: "empty_prompt",
        4: "template_error",
        5: "wrong_type",
        6: "prompt_too_long",
        7: "engine_rejected",
    }
    assert "in.jsonl:2" in failed[2]["message"]
    assert failed[2]["row"] == lines[1]
    assert json.loads(failed[7]["row"]) == {"question": "refuse me", "n": 7}
    assert "4096" in failed[6]["message"]
    assert "malformed_line" in done.stdout
    assert "Traceback" not in done.stderr
    record = json.loads((out / "_manta" / "job.json").read_text())
    assert (record["rows"], record["answers"], record["failed"]) == (8, 2, 6)
    assert list((out / "_manta" / "logs").iterdir())
    assert "Done, with 6 failed rows" in (out / "_manta" / "report.html").read_text()


def test_many_files_of_three_formats_go_through_two_replicas_once_each(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    table = pa.table({"question": [f"parquet {i}" for i in range(150)], "n": [str(i) for i in range(150)]})
    pq.write_table(table, folder / "a.parquet", row_group_size=40)
    pacsv.write_csv(table.slice(0, 70), folder / "b.csv")
    lines = [json.dumps({"question": f"jsonl {i}", "n": str(i)}) for i in range(200)]
    (folder / "c.jsonl").write_text("\n".join(lines))
    out = tmp_path / "out"
    done = manta(
        *(f"data.input={folder}", f"output.path={out}", "engine.num_replicas=1..2", "output=jsonl"),
        *("output.rows_per_file=100", "engine.fault.latency_ms=5", "engine.max_num_seqs=16"),
    )
    assert done.returncode == 0, done.stderr
    answers = read_answers(out)
    assert len(answers) == len({row["row_id"] for row in answers}) == 420
    assert len(list(out.glob("part-*.jsonl"))) > 1
    record = json.loads((out / "_manta" / "job.json").read_text())
    order = {entry["row_id_prefix"]: place for place, entry in enumerate(record["inputs"])}
    restored = sorted(answers, key=lambda row: (order[row["row_id"][:16]], row["row_id"]))
    wanted = (
        [f"parquet {i}" for i in range(150)] + [f"parquet {i}" for i in range(70)] + [f"jsonl {i}" for i in range(200)]
    )
    assert [row["question"] for row in restored] == wanted
    spent = record["replica_seconds"]
    first, second = (sum(each["seconds"].values()) for each in spent["replicas"])
    assert first == pytest.approx(second, abs=0.01)
    assert sum(spent["seconds"].values()) == pytest.approx(first + second, abs=0.01)
    assert 0 < first < record["seconds"]["total"]
    assert spent["seconds"]["computing"] > 0
    assert spent["seconds"]["start_up"] > 0
    assert sum(record["completion_lengths"]) == 420
    assert "% start-up" in done.stdout
    assert f"{out}/_manta/report.html" in done.stdout
    assert "engine 2" in (out / "_manta" / "report.html").read_text()
    assert 1 <= len(record["engine_start_s"]) <= 2  # Ray ends engines that are not ready when no units are left


def test_a_dead_engine_is_replaced_and_no_row_is_lost_or_doubled(tmp_path: Path) -> None:
    source, out = questions(tmp_path / "in.jsonl", 300), tmp_path / "out"
    done = manta(
        *(f"data.input={source}", f"output.path={out}", "engine.fault.die_after=60", "engine.fault.latency_ms=20"),
        *(f"engine.fault.die_once_file={tmp_path / 'died'}", "engine.max_num_seqs=16"),
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "died").exists()
    answers = read_answers(out)
    assert sorted(row["n"] for row in answers) == list(range(300))
    assert "dead engines" in done.stdout
    assert done.stderr.count("an engine died and is replaced: injected") == 1
    spent = json.loads((out / "_manta" / "job.json").read_text())["replica_seconds"]
    assert spent["seconds"]["retries"] > 0
    assert [len(each["replicas"]) for each in spent["replicas"]] == [2]


@pytest.mark.slow
def test_a_job_whose_engines_keep_dying_ends_with_the_cause(tmp_path: Path) -> None:
    source, out = questions(tmp_path / "in.jsonl", 40, "poison {}"), tmp_path / "out"
    done = manta(
        *(f"data.input={source}", f"output.path={out}", "engine.fault.die_marker=poison", "engine.max_restarts=1")
    )
    assert done.returncode == 1, done.stderr
    assert "injected: the prompt has 'poison'" in done.stderr
    assert "engine.max_restarts=1" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_an_engine_that_does_not_start_ends_the_job_with_the_cause(tmp_path: Path) -> None:
    source, out = questions(tmp_path / "in.jsonl", 3), tmp_path / "out"
    done = manta(f"data.input={source}", f"output.path={out}", "engine.fault.fail_start=true")
    assert done.returncode == 1, done.stderr
    assert "did not start: injected: the engine does not start" in done.stderr
    assert "Traceback" not in done.stderr


def test_interrupted_jobs_keep_what_was_finished(tmp_path: Path) -> None:
    source, out = questions(tmp_path / "in.jsonl", 2000), tmp_path / "out"
    words = [f"data.input={source}", f"output.path={out}", "engine.fault.latency_ms=400", "engine.max_in_flight=32"]
    process = start(*words, "progress.interval_s=0.3")
    assert process.stderr is not None
    seen = ""
    for line in process.stderr:
        seen += line
        if "/2,000 rows" in line and not line.split("·")[1].strip().startswith("0/"):
            break
    else:
        pytest.fail(f"no row was done:\n{seen}")
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=90)
    assert process.returncode == 130, seen + stderr
    answers = read_answers(out)
    assert 0 < len(answers) < 2000
    assert len({row["row_id"] for row in answers}) == len(answers)
    assert "what was finished is kept" in stdout
    record = json.loads((out / "_manta" / "job.json").read_text())
    assert record["interrupted"]
    assert record["answers"] == len(answers)
    assert record["answers"] + record["unfinished"] == 2000
    assert "Interrupted" in (out / "_manta" / "report.html").read_text()


@pytest.mark.slow
def test_a_second_interruption_ends_the_job_at_once(tmp_path: Path) -> None:
    """The engine's process stands still, so the first one waits for it."""
    source, out, side = questions(tmp_path / "in.jsonl", 400), tmp_path / "out", tmp_path / "computed"
    words = [f"data.input={source}", f"output.path={out}", f"engine.fault.computed_file={side}"]
    process = start(*words, "engine.fault.latency_ms=200", "engine.max_in_flight=16", "progress.quiet=true")
    wait_for_computed(side, 50, process)
    family = psutil.Process(process.pid).children(recursive=True)
    names = {one.pid: " ".join(one.cmdline()) for one in family}
    replica = next(one for one in family if "Infer" in names[one.pid])
    try:
        replica.suspend()
        process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=5)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=10)
    finally:
        replica.kill()
    assert process.returncode == 130, stderr
    assert "stopped at once; what was finished is kept" in stderr
    assert "Traceback" not in stderr
    # two small agents of Ray's notice it only after a minute or two, as they do when a driver is killed
    _, left = psutil.wait_procs([one for one in family if "Agent" not in names[one.pid]], timeout=10)
    assert [one for one in left if one.status() != psutil.STATUS_ZOMBIE] == []
    paid = computed(side)
    done = manta(*words)
    assert done.returncode == 0, done.stderr
    assert sorted(row["n"] for row in read_answers(out)) == list(range(400))
    assert computed(side) - 400 <= 16
    assert record(out)["replayed"] + record(out)["done_before"] >= paid - 16


def test_more_replicas_than_the_cluster_holds_are_refused(tmp_path: Path) -> None:
    source = questions(tmp_path / "in.jsonl", 3)
    done = manta(
        f"data.input={source}", f"output.path={tmp_path / 'out'}", "engine.num_replicas=4", "cluster.num_cpus=2"
    )
    assert done.returncode == 2, done.stderr
    assert "engine.num_replicas=4" in done.stderr.splitlines()[-1]
