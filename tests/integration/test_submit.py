"""Jobs that are submitted to a real cluster, as a person sees them. One cluster, of one node, for all."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from conftest import ROOT, read_answers
from jobs import PROMPT, questions, wait_for_computed
from services import free_port

from cluster import known
from cluster.ending import end
from cluster.known import KnownCluster
from conf.cli import main

pytestmark = pytest.mark.timeout(300)
AUTH = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN")
"""What the other tests share: the cluster has a token of its own."""
SECRET = "a-secret-that-must-not-be-written"


@dataclass(frozen=True)
class Cluster:
    known: KnownCluster
    environment: dict[str, str]

    def start(self, *words: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "conf.cli", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**self.environment, **environment},
            # a shell that starts tests in the background lets them, and all below them, ignore it
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None,
        )

    def manta(self, *words: str, **environment: str) -> tuple[int, str, str]:
        process = self.start(*words, **environment)
        out, err = process.communicate(timeout=200)
        return process.returncode, out, err

    def logs(self) -> str:
        """All that Ray and its workers have written on the cluster's node."""
        assert self.known.scratch is not None
        paths = [path for path in self.known.scratch.glob("*/session_2*/logs/**/*") if path.is_file()]
        assert paths
        return "".join(path.read_text(errors="replace") for path in paths)


def started(folder: Path, *words: str) -> Iterator[Cluster]:
    inherited = {key: value for key, value in os.environ.items() if key not in AUTH}
    environment = {**inherited, "PYTHONPATH": str(ROOT), "MANTA_HOME": str(folder)}
    up = [sys.executable, "-m", "conf.cli", "cluster", "up", "cluster.object_store_bytes=100000000", *words]
    done = subprocess.run(up, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    cluster = known.find(None, environment)
    try:
        yield Cluster(cluster, environment)
    finally:
        end(cluster, grace_s=0.0)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    yield from started(tmp_path_factory.mktemp("home"), "cluster.nodes=1", "cluster.num_cpus=3")


def batch(source: Path, out: Path, *words: str) -> list[str]:
    job = ["model=demo", "engine=fake", PROMPT, f"data.input={source}", f"output.path={out}"]
    return ["submit", "batch", *job, "progress.show_rows=0", *words]


def listed(cluster: Cluster) -> dict[str, dict]:
    code, out, err = cluster.manta("jobs", "list", "--json")
    assert code == 0, err
    return {each["id"]: each for each in json.loads(out)}


def test_a_job_travels_with_its_files_and_secrets_and_runs_once(cluster: Cluster, tmp_path: Path):
    """As to a cluster elsewhere: nothing of this machine is seen there but the folder for the answers."""
    source, out = questions(tmp_path / "q.jsonl", 30), tmp_path / "out"
    where = f"cluster.jobs_url={cluster.known.jobs_url}"
    words = batch(source, out, where, f"submit.files=[{source}]", "submit.env=[MY_SECRET]")
    words.append("engine.fault.reject_marker=have 7 spiders")
    environment = {"MANTA_CLUSTER_TOKEN": cluster.known.token, "MY_SECRET": SECRET}
    words.append(f"submit.python={sys.executable}")
    code, said, err = cluster.manta(*words, **environment)
    assert code == 3, said + err
    assert "answers             29" in said
    assert len(read_answers(out)) == 29
    record = json.loads((out / "_manta" / "job.json").read_text())
    assert "_files" in str(record)

    again, said, err = cluster.manta(*words, **environment)
    assert (again, said) == (3, "")
    assert "has run already" in err
    (job,) = [each for each in listed(cluster).values() if each["output"] == str(out)]
    assert (job["state"], job["exit_code"], job["restarts"]) == ("done, rows failed", 3, 0)
    code, said, _ = cluster.manta("jobs", "show", job["id"], "--json")
    assert json.loads(said) == job
    code, log, _ = cluster.manta("jobs", "logs", job["id"])
    assert "manta batch: done" in log
    for text in (cluster.logs(), log, said, str(record)):
        assert SECRET not in text
        assert cluster.known.token not in text


def test_a_job_that_needs_gpus_is_one_line_and_the_user_s_mistake(cluster: Cluster, tmp_path: Path):
    source, out = questions(tmp_path / "q.jsonl", 3), tmp_path / "out"
    code, said, _ = cluster.manta(*batch(source, out, "engine=auto", "engine.device=cuda"))
    assert code == 2
    assert said.splitlines()[-1] == "manta batch: engine.num_replicas=1 of 1 GPU each need 1 GPU, the cluster has 0"
    assert not out.exists() or not read_answers(out)


def test_a_job_goes_on_when_nobody_follows_it_is_followed_again_and_stopped(cluster: Cluster, tmp_path: Path):
    source, out, counted = questions(tmp_path / "q.jsonl", 400), tmp_path / "out", tmp_path / "computed"
    slow = ("engine.max_num_seqs=2", "engine.max_in_flight=2", "engine.fault.latency_ms=300")
    words = batch(source, out, *slow, f"engine.fault.computed_file={counted}")
    follower = cluster.start(*words)
    wait_for_computed(counted, 4, follower)
    follower.send_signal(signal.SIGINT)
    said, err = follower.communicate(timeout=30)
    assert follower.returncode == 130, err
    assert f"400 rows in 1 file -> {out}" in said
    assert "goes on: manta jobs logs manta-batch-" in err
    (job,) = [each for each in listed(cluster).values() if each["output"] == str(out)]
    assert job["state"] == "running"

    code, _, err = cluster.manta(*words, "--no-wait")
    assert code == 0
    assert f"{job['id']} runs already" in err
    assert len([each for each in listed(cluster).values() if each["output"] == str(out)]) == 1

    code, _, err = cluster.manta("jobs", "stop", job["id"])
    assert code == 0, err
    assert "has ended" in err
    assert listed(cluster)[job["id"]]["state"] == "stopped"
    assert 0 < len(counted.read_bytes().splitlines()) < 400


@pytest.mark.parametrize(
    "words,message",
    [
        (["jobs", "show", "manta-batch-x"], "no job 'manta-batch-x'"),
        (["jobs", "logs", "manta-batch-x"], "no job 'manta-batch-x'"),
        (["jobs", "stop", "manta-batch-x"], "no job 'manta-batch-x'"),
        (["jobs", "lst"], "got 'lst'; did you mean 'list'?"),
        (["jobs", "show"], "takes one id"),
        (["jobs", "list", "--follow"], "unknown option '--follow'"),
        (["submit", "plan", "model=demo"], "'plan' cannot be submitted (there are batch, serve, optimize, evaluate)"),
        (["submit", "bath"], "'bath' cannot be submitted; did you mean 'batch'?"),
        (["submit", "batch", "model=demo", "data=tickets", "--nowait"], "unknown option '--nowait'; did you mean"),
        (["submit", "batch", "model=demo", "data=tickets", "sampling.n=0"], "sampling.n must be"),
        (["submit", "batch", "model=demo", "data=tickets", "submit.fil=[a]"], "did you mean 'submit.files'?"),
        (["submit", "batch", "model=demo", "data=tickets", "cluster.address=auto"], "cluster.address=auto: a job that"),
        (["submit", "batch", "model=demo", "data=tickets", "cluster.name=nope"], "no such cluster on this machine"),
        (["submit", "batch", "model=demo", "data=tickets", "dry_run=true"], "dry_run=true runs nothing"),
        (["submit", "batch", "model=demo", "data=tickets", "submit.env=[NOT_SET]"], "NOT_SET is not set"),
    ],
)
def test_each_mistake_is_one_line(
    cluster: Cluster,
    words: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setenv("MANTA_HOME", cluster.environment["MANTA_HOME"])
    code = main(words)
    out, err = capsys.readouterr()
    assert (code, out, len(err.splitlines())) == (2, "", 1), err
    assert message in err


@pytest.mark.parametrize("words", [["jobs", "list"], ["submit", "batch", "model=demo", "data=tickets"]])
def test_a_wrong_token_and_a_cluster_that_is_not_there_are_one_line(
    cluster: Cluster,
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setenv("MANTA_HOME", str(tmp_path))
    if words[0] == "submit":
        words = [*words, f"output.path={tmp_path / 'out'}"]
    said = []
    for where, token in (
        ([], None),
        ([f"cluster.jobs_url=http://127.0.0.1:{free_port()}"], "x" * 32),
        ([f"cluster.jobs_url={cluster.known.jobs_url}"], "x" * 32),
    ):
        if token is not None:
            monkeypatch.setenv("MANTA_CLUSTER_TOKEN", token)
        code = main([*words, *where])
        out, err = capsys.readouterr()
        assert (code, out, len(err.splitlines())) == (2, "", 1), err
        said.append(err)
    assert "no cluster runs on this machine" in said[0]
    assert "no cluster answers" in said[1]
    assert "the cluster refuses the token" in said[2]


@pytest.mark.slow
def test_a_service_answers_after_it_was_submitted_until_it_is_stopped(cluster: Cluster, tmp_path: Path):
    port = free_port()
    words = ["submit", "serve", "model=demo", "access.open=true", "engine.max_model_len=512"]
    words += [f"deployment.port={port}", f"deployment.logs={tmp_path / 'logs'}"]
    code, said, err = cluster.manta(*words)
    assert code == 0, said + err
    assert f"http://127.0.0.1:{port}/v1" in said
    submission = said.splitlines()[-1].split()[4]
    asked = {"model": "demo", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
    answer = httpx.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=asked, timeout=60)
    assert answer.json()["usage"]["completion_tokens"] == 4
    code, said, err = cluster.manta(*words)
    assert code == 0
    assert f"{submission} runs already" in err
    code, _, err = cluster.manta("jobs", "stop", submission)
    assert code == 0, err
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://127.0.0.1:{port}/ready", timeout=10)
    assert "manta serve: stopped" in cluster.manta("jobs", "logs", submission)[1]


@pytest.mark.slow
def test_a_driver_that_dies_with_its_node_goes_on_from_the_ledger_and_a_head_that_goes_is_told(tmp_path: Path):
    for cluster in started(tmp_path / "home", "cluster.nodes=3", "cluster.num_cpus=3"):
        source, out, counted = questions(tmp_path / "q.jsonl", 60), tmp_path / "out", tmp_path / "computed"
        # the head has no CPUs left for a driver
        occupied = "from cluster import known; from cluster.submit.client import JobClient; "
        occupied += "JobClient(known.find(None).jobs).submit('occupied', 'sleep 600', {}, {}, 3)"
        subprocess.run([sys.executable, "-c", occupied], env=cluster.environment, check=True)
        while listed(cluster)["occupied"]["state"] != "running":
            time.sleep(0.2)
        slow = ("engine.max_num_seqs=2", "engine.max_in_flight=2", "engine.fault.latency_ms=300")
        words = batch(source, out, *slow, f"engine.fault.computed_file={counted}", "submit.driver_cpus=1")
        follower = cluster.start(*words)
        wait_for_computed(counted, 10, follower)
        node = listed(cluster)
        (job,) = [each for each in node.values() if each["output"] == str(out)]
        victim = next(process for process in cluster.known.processes[1:] if runs_driver(process.pid, job["id"]))
        victim.send(signal.SIGKILL)
        said, err = follower.communicate(timeout=200)
        assert follower.returncode == 0, said + err
        assert f"{job['id']}: its driver died" in err
        assert f"it goes on as {job['id']}-2, restart 1 of 3" in err
        assert len(read_answers(out)) == 60
        assert len({answer["row_id"] for answer in read_answers(out)}) == 60
        after = listed(cluster)
        assert (after[job["id"]]["state"], after[f"{job['id']}-2"]["restarts"]) == ("died", 1)

        follower = cluster.start("jobs", "logs", "occupied", "--follow")
        time.sleep(3)
        cluster.known.processes[0].send(signal.SIGKILL)
        said, err = follower.communicate(timeout=60)
        assert follower.returncode == 1
        assert f"manta jobs: {cluster.known.jobs_url} does not answer any more" in err
        assert len(err.splitlines()) == 1


def runs_driver(pid: int, submission_id: str) -> bool:
    """Whether a node's process has the driver of a submission below it."""
    import psutil

    below = psutil.Process(pid).children(recursive=True)
    return any(submission_id in each.cmdline() for each in below)
