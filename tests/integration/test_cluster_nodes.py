"""A cluster of several real nodes on this machine, from its start to its end."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import openai
import psutil
import pytest
from batches import assert_answers, begin_batch, until
from conftest import read_answers
from jobs import command, questions, run
from openai.types import Batch
from services import serving

from cluster import known
from cluster.ending import MARK, end, processes_of
from cluster.known import KnownCluster

pytestmark = pytest.mark.timeout(200)
AUTH = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN")
"""What the other tests share: the cluster has a token of its own."""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where clusters are known; what is left of them ends with the test."""
    import jobs
    import services

    folder = tmp_path / "clusters"
    monkeypatch.setenv("MANTA_CLUSTERS", str(folder))
    monkeypatch.setenv("MANTA_HOME", str(tmp_path))
    environment = {key: value for key, value in jobs.ENVIRONMENT.items() if key not in AUTH}
    own = {"MANTA_CLUSTERS": str(folder), "MANTA_HOME": str(tmp_path)}
    for module in (jobs, services):
        monkeypatch.setattr(module, "ENVIRONMENT", {**environment, **own})
    yield folder
    for name in known.names():
        if (cluster := known.read(name)) is not None:
            end(cluster, grace_s=0.0)


def named(cluster: KnownCluster) -> list[str]:
    """What runs and names the cluster's folder, found without its own record."""
    found = []
    for process in psutil.process_iter():
        try:
            line = " ".join(process.cmdline())
            if str(cluster.scratch) in line or process.environ().get(MARK) == str(cluster.scratch):
                found.append(f"{process.pid} {line}")
        except psutil.Error:
            continue
    return found


def wait_for_targets(folder: Path, count: int, timeout_s: float = 30) -> None:
    """Waits until Prometheus, which looks in this folder, finds so many addresses; Ray lists them every 5 s."""
    (listing,) = folder.iterdir()
    deadline = time.monotonic() + timeout_s
    while not listing.exists() or len(json.loads(listing.read_text())[0]["targets"]) < count:
        assert time.monotonic() < deadline, listing.readlink()
        time.sleep(0.1)


def test_a_job_runs_on_three_nodes_and_nothing_is_left_of_them(home: Path, tmp_path: Path):
    # one CPU a node: two replicas and a reader need all three
    started = run("cluster", "up", "cluster=local", "cluster.nodes=3", "cluster.num_cpus=1")
    assert started.returncode == 0, started.stderr
    cluster = known.find(None)
    assert len(named(cluster)) >= 9
    listening = {
        connection.laddr
        for process in processes_of(cluster)
        for connection in psutil.Process(process.pid).net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    assert len(listening) > 10
    assert {address.ip.removeprefix("::ffff:") for address in listening} == {"127.0.0.1"}
    wait_for_targets(tmp_path / "metrics", 3)

    source, out = questions(tmp_path / "q.jsonl", 200), tmp_path / "out"
    words = (f"data.input={source}", f"output.path={out}", "cluster=running", "engine.num_replicas=2")
    done = run(*command(*words)[3:])
    assert done.returncode == 0, done.stderr
    assert sorted(row["n"] for row in read_answers(out)) == list(range(200))

    shown = run("cluster", "status", "local", "--json")
    found = json.loads(shown.stdout)
    assert (shown.returncode, found["state"]) == (0, "ready")
    assert [(node["is_alive"], node["num_cpus"]) for node in found["nodes"]] == [(True, 1.0)] * 3
    assert [node["is_head"] for node in found["nodes"]] == [True, False, False]

    ended = run("cluster", "down")
    assert ended.returncode == 0, ended.stderr
    assert named(cluster) == []
    assert cluster.scratch is not None
    assert not cluster.scratch.exists()
    assert list(home.iterdir()) == []
    assert list((tmp_path / "metrics").iterdir()) == []
    assert run("cluster", "down").returncode == 0
    gone = run(*command(f"data.input={source}", f"output.path={tmp_path / 'other'}", "cluster=running")[3:])
    assert gone.returncode == 2
    assert "cluster.name: no cluster runs on this machine" in gone.stderr.splitlines()[-1]


@pytest.mark.slow
def test_a_cluster_whose_head_is_killed_is_cleaned_up(home: Path):
    assert run("cluster", "up", "cluster.nodes=2").returncode == 0
    cluster = known.find(None)
    os.kill(cluster.processes[0].pid, signal.SIGKILL)
    assert cluster.processes[0].wait(10)
    shown = run("cluster", "status")
    assert shown.returncode == 1
    assert "its head has ended" in shown.stdout
    assert run("cluster", "down").returncode == 0
    assert named(cluster) == []
    assert list(home.iterdir()) == []


@pytest.mark.slow
def test_nodes_come_for_work_and_leave(home: Path, tmp_path: Path):
    words = ("cluster=local_autoscaled", "cluster.max_nodes=3", "cluster.num_cpus=2", "cluster.idle_s=5")
    started = run("cluster", "up", *words)
    assert started.returncode == 0, started.stderr
    cluster = known.find(None)
    source, out = questions(tmp_path / "q.jsonl", 400), tmp_path / "out"
    # three replicas and a reader on nodes of two CPUs: the head holds half of them
    done = run(*command(f"data.input={source}", f"output.path={out}", "cluster=running", "engine.num_replicas=3")[3:])
    assert done.returncode == 0, done.stderr
    assert len(read_answers(out)) == 400
    nodes = json.loads(run("cluster", "status", "local", "--json").stdout)["nodes"]
    assert len(nodes) >= 2
    assert run("cluster", "down").returncode == 0
    assert named(cluster) == []


def has_replica(process: psutil.Process) -> bool:
    return any("ServeReplica:manta:replica" in " ".join(child.cmdline()) for child in process.children(recursive=True))


@pytest.mark.slow  # test_serve_batches.py ends the service alone
@pytest.mark.timeout(900)
def test_a_batch_outlives_two_services_and_a_node_of_their_cluster(home: Path, tmp_path: Path):
    started = run("cluster", "up", "cluster=local", "cluster.nodes=3", "cluster.num_cpus=2")
    assert started.returncode == 0, started.stderr
    cluster = known.find(None)
    asks = {f"line-{n}": {"model": "demo", "prompt": f"Order {n}", "max_tokens": 16} for n in range(1000)}
    words = ["model=demo", "engine.max_model_len=512", "engine.max_num_seqs=16", f"batches.path={tmp_path}/batches"]
    words += ["cluster=running", "engine.num_replicas=2", "cache=off"]

    def num_done(batch: Batch) -> int:
        return batch.request_counts.completed if batch.request_counts else 0

    name = ""
    for turn in range(3):
        folder = tmp_path / str(turn)
        folder.mkdir()
        with (
            serving(folder, *words) as service,
            openai.OpenAI(base_url=f"{service.url}/v1", api_key="none", timeout=60) as client,
        ):
            name = name or begin_batch(client, asks).id
            before = num_done(client.batches.retrieve(name))
            if turn == 2:
                assert_answers(client, until(client, name, lambda batch: batch.status == "completed", 600), asks)
                break
            until(client, name, lambda batch, before=before: num_done(batch) > before)
            if turn == 1:
                nodes = [psutil.Process(process.pid) for process in cluster.processes[1:]]
                lost = next(node for node in nodes if has_replica(node))
                before = num_done(client.batches.retrieve(name))
                assert before < 600, "the batch was nearly over before the node was lost"
                os.killpg(lost.pid, signal.SIGKILL)
                until(client, name, lambda batch, before=before: num_done(batch) > before)
    assert run("cluster", "down").returncode == 0
    assert named(cluster) == []
