"""What a job survives, run as people run it. scripts/torture.py does the same many times at random moments."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
from conftest import read_answers
from jobs import computed, manta, questions, read_failed, record, run, start, wait_for_computed

pytestmark = pytest.mark.timeout(400)


def test_a_killed_job_goes_on_and_pays_for_nothing_twice(tmp_path: Path) -> None:
    source, out, side = questions(tmp_path / "in.jsonl", 600), tmp_path / "out", tmp_path / "computed"
    words = (
        *(f"data.input={source}", f"output.path={out}", f"engine.fault.computed_file={side}"),
        *("engine.max_in_flight=32", "engine.fault.latency_ms=50"),
    )
    first = start(*words)
    wait_for_computed(side, 250, first)
    second = manta(*words)
    assert second.returncode == 2, second.stderr
    assert f"process {first.pid} on" in second.stderr
    assert first.poll() is None
    below = psutil.Process(first.pid).children(recursive=True)
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    assert psutil.wait_procs(below, timeout=15)[1] == []
    seen = run("inspect", str(out), "--json")
    assert seen.returncode == 0, seen.stderr
    shown = json.loads(seen.stdout)
    assert shown["answers"] + shown["answers_waiting"] >= 250 - 32
    assert shown["running"] is None

    done = manta(*words)
    assert done.returncode == 0, done.stderr
    assert sorted(row["n"] for row in read_answers(out)) == list(range(600))
    counts = Counter(side.read_text().split())
    assert len(counts) == 600
    assert sum(counts.values()) - 600 <= 32
    assert record(out)["done_before"] + record(out)["replayed"] >= 250 - 32
    assert not list((out / "_manta" / "log").iterdir())

    began, before = time.monotonic(), computed(side)
    again = manta(*words)
    assert again.returncode == 0, again.stderr
    assert time.monotonic() - began < 20  # no cluster, no engine
    assert computed(side) == before

    # one row changed, ten appended: nothing else is computed
    lines = source.read_text().splitlines()
    lines[100] = json.dumps({"question": "How many legs have 100 beetles?", "n": 100})
    lines += [json.dumps({"question": f"How many eyes have {n} spiders?", "n": n}) for n in range(600, 610)]
    source.write_text("\n".join(lines) + "\n")
    more = manta(*words)
    assert more.returncode == 0, more.stderr
    answers = {row["n"]: row for row in read_answers(out)}
    assert len(read_answers(out)) == len(answers) == 610
    assert answers[100]["output"] == "How many legs have 100 beetles?"
    assert computed(side) - before == 11

    changed = manta(*words, "sampling.max_tokens=7")
    assert changed.returncode == 2
    assert "sampling.max_tokens is 7, it was 256" in changed.stderr
    assert "output.on_change=recompute" in changed.stderr


@pytest.mark.slow
def test_a_row_that_kills_its_engine_is_quarantined_and_driven_again(tmp_path: Path) -> None:
    source, out = questions(tmp_path / "in.jsonl", 300), tmp_path / "out"
    lines = source.read_text().splitlines()
    lines[7] = json.dumps({"question": "long " * 3000, "n": 7})
    source.write_text("\n".join(lines))
    words = (f"data.input={source}", f"output.path={out}", "engine.max_in_flight=64", "engine.max_model_len=2048")
    done = manta(*words, "engine.fault.die_marker=have 123 spiders", "engine.fault.latency_ms=10")
    assert done.returncode == 3, done.stderr
    failed = {json.loads(row["row"])["n"]: row for row in read_failed(out)}
    assert {n: row["error"] for n, row in failed.items()} == {7: "prompt_too_long", 123: "engine_killer"}
    assert "injected: the prompt has 'have 123 spiders'" in failed[123]["message"]
    assert failed[123]["attempts"] >= 4
    assert len(read_answers(out)) == 298

    shown = run("inspect", str(out))
    assert shown.returncode == 0, shown.stderr
    assert "engine_killer" in shown.stdout
    assert "manta redrive" in shown.stdout

    refused = run("redrive", str(out), "data.limit=3")
    assert refused.returncode == 2
    again = run("redrive", str(out), "engine.max_model_len=4096", "engine.fault.die_marker=null")
    assert again.returncode == 0, again.stderr
    answers = {row["n"]: row for row in read_answers(out)}
    assert sorted(answers) == list(range(300))
    assert answers[123]["output"] == "How many legs have 123 spiders?"
    assert not read_failed(out)
    assert record(out)["requests"] == 2
    assert run("redrive", str(out)).returncode == 0  # nothing has failed


@pytest.mark.slow
def test_an_engine_that_hangs_or_is_killed_is_replaced(tmp_path: Path) -> None:
    source, out = questions(tmp_path / "in.jsonl", 60), tmp_path / "out"
    done = manta(
        *(f"data.input={source}", f"output.path={out}", "engine.hang_timeout_s=2", "engine.max_in_flight=8"),
        *("engine.fault.hang_marker=have 31 spiders", "batch.max_attempts=3"),
    )
    assert done.returncode == 3, done.stderr
    assert [json.loads(row["row"])["n"] for row in read_failed(out)] == [31]
    assert "the engine hangs" in read_failed(out)[0]["message"]
    assert len(read_answers(out)) == 59


@pytest.mark.slow
def test_equal_requests_run_once(tmp_path: Path) -> None:
    source, out, side = tmp_path / "in.jsonl", tmp_path / "out", tmp_path / "computed"
    rows = [{"question": f"How many legs have {n % 150} spiders?", "n": n} for n in range(300)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = (f"data.input={source}", f"engine.fault.computed_file={side}", "engine.num_replicas=2")
    done = manta(*words, f"output.path={out}")
    assert done.returncode == 0, done.stderr
    assert computed(side) == record(out)["requests"] == 150
    assert record(out)["shared"] == 150
    assert "150 requests ran" in done.stdout
    answers = read_answers(out)
    assert len(answers) == 300
    assert all(row["output"] == row["question"] for row in answers)
    # answers drawn by chance are no one else's
    drawn = manta(*words, f"output.path={tmp_path / 'drawn'}", "sampling.temperature=0.5", "sampling.n=2")
    assert drawn.returncode == 0, drawn.stderr
    assert computed(side) == 450
    assert all(len(row["outputs"]) == 2 for row in read_answers(tmp_path / "drawn"))


@pytest.mark.slow  # the next test and those of tests/integration/test_cluster_nodes.py are shorter
def test_a_node_is_lost_in_the_midst_of_a_job(tmp_path: Path) -> None:
    source, out, side = questions(tmp_path / "in.jsonl", 400), tmp_path / "out", tmp_path / "computed"
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "object_store_memory": 100 << 20, "include_dashboard": False},
    )
    try:
        nodes = [cluster.add_node(num_cpus=2, object_store_memory=100 << 20) for _ in range(2)]
        process = start(
            *(f"data.input={source}", f"output.path={out}", f"cluster.address={cluster.address}"),
            *(f"engine.fault.computed_file={side}", "engine.num_replicas=2", "engine.max_in_flight=16"),
            "engine.fault.latency_ms=100",
        )
        wait_for_computed(side, 100, process)
        cluster.remove_node(nodes[0], allow_graceful=False)
        _, stderr = process.communicate(timeout=200)
        assert process.returncode == 0, stderr
    finally:
        cluster.shutdown()
    assert sorted(row["n"] for row in read_answers(out)) == list(range(400))
    assert computed(side) - 400 <= 2 * 16


def test_a_ledger_that_cannot_be_written_ends_the_job_with_the_cause(tmp_path: Path) -> None:
    source, out = questions(tmp_path / "in.jsonl", 40), tmp_path / "out"
    (out / "_manta").mkdir(parents=True)
    (out / "_manta" / "log").touch()  # where a folder is wanted
    done = manta(f"data.input={source}", f"output.path={out}")
    assert done.returncode == 1, done.stderr
    assert f"output.path={out}: it is a file, or lies below one" in done.stderr
    assert "Traceback" not in done.stderr
