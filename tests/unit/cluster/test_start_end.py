"""A cluster's start and end with programs in place of Ray's nodes: what is left after each way that it can go."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from cluster import dashboard, known, start, verb
from cluster.dashboard import JobNow, NoAnswer, NodeNow
from cluster.ending import MARK, end, processes_of
from cluster.node import NodeSpec
from cluster.ports import free_ports
from cluster.process import this_process
from conf.cli import main
from conf.errors import UserError
from conf.schema.cluster import ClusterSpec

Capture = pytest.CaptureFixture[str]
NODE = """
import json, os, signal, subprocess, sys, time
spec = json.load(open(sys.argv[1]))
if spec["name"] == os.environ.get("FAILING"):
    sys.exit("no room for " + spec["name"])
sleep = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
# one that does not listen, and one that has left for a session of its own, as the drivers of jobs do
subprocess.Popen([sys.executable, "-c", sleep])
subprocess.Popen([sys.executable, "-c", sleep], start_new_session=True)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
open(f'{spec["scratch"]}/{spec["name"]}.ready', "w").close()
time.sleep(600)
"""


@pytest.fixture
def environ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """Where clusters are known; nodes are programs that sleep."""
    program = tmp_path / "node.py"
    program.write_text(NODE)
    monkeypatch.setattr(start, "PROGRAM", (str(program),))
    monkeypatch.setattr(start, "ANSWER_S", 0.5)
    monkeypatch.setenv("MANTA_CLUSTERS", str(tmp_path / "clusters"))
    monkeypatch.setenv("MANTA_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(dashboard, "nodes", lambda _: seen(tmp_path / "clusters"))
    monkeypatch.setattr(dashboard, "jobs", lambda _: [JobNow(id="j1", status="RUNNING", entrypoint="e")])
    yield dict(os.environ)
    for name in known.names():
        if (cluster := known.read(name)) is not None:
            end(cluster, grace_s=0.0)


def seen(folder: Path) -> list[NodeNow]:
    records = [json.loads(path.read_text()) for path in folder.glob("*/cluster.json")]
    names = [path.stem for record in records for path in Path(record["scratch"]).glob("*.ready")]
    return [
        NodeNow(name=name, address="a", is_head=name == "head", is_alive=True, num_cpus=2.0, used_cpus=1.0)
        for name in names
    ]


def of_cluster(scratch: str | Path | None) -> list[int]:
    """Processes that name the folder, on their command lines or in their environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if f"{scratch}" in " ".join(process.cmdline()) or process.environ().get(MARK) == str(scratch):
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


def test_up_status_down_and_nothing_is_left(environ: dict[str, str], capsys: Capture):
    assert main(["cluster", "up", "cluster.nodes=3", "cluster.num_cpus=2"]) == 0
    said = capsys.readouterr().err
    for news in ("starting local, 3 nodes", "head is up, 2 CPUs", "node-2 is up", "cluster=running\n"):
        assert news in said
    cluster = known.find(None)
    assert cluster.token not in said
    assert cluster.most_cpus == 6
    assert cluster.scratch is not None
    assert stat.S_IMODE(cluster.scratch.stat().st_mode) == 0o700
    assert len(of_cluster(cluster.scratch)) == len(processes_of(cluster)) == 9

    assert main(["cluster", "up", "cluster.nodes=3"]) == 2
    assert "cluster.name=local: runs already" in capsys.readouterr().err
    assert main(["cluster", "status"]) == 0
    assert "3 alive, 3 of 6 CPUs used" in capsys.readouterr().out
    assert main(["cluster", "status", "local", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["state"] == "ready"
    assert [node["name"] for node in found["nodes"]].count("head") == 1
    assert [job["id"] for job in found["jobs"]] == ["j1"]

    assert main(["cluster", "down"]) == 0
    assert not of_cluster(cluster.scratch)
    assert not cluster.scratch.exists()
    assert not cluster.folder.exists()
    assert main(["cluster", "down"]) == 0
    assert main(["cluster", "down", "local"]) == 0
    assert main(["cluster", "status"]) == 1


def test_a_node_that_does_not_start_takes_all_with_it(
    environ: dict[str, str], capsys: Capture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("FAILING", "node-1")
    scratches = []
    make = start._make_scratch
    monkeypatch.setattr(start, "_make_scratch", lambda: scratches.append(make()) or scratches[-1])
    assert main(["cluster", "up", "cluster.nodes=2"]) == 1
    said = capsys.readouterr().err
    assert "node-1 did not start (exit code 1): no room for node-1" in said
    assert "nothing is left of local" in said
    assert not of_cluster(scratches[0])
    assert not scratches[0].exists()
    assert known.names() == []


def test_ctrl_c_midway_leaves_nothing(environ: dict[str, str], monkeypatch: pytest.MonkeyPatch):
    scratches = []

    def interrupt(news: str) -> None:
        scratches.append(known.read("c").scratch)  # type: ignore[union-attr]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        start.start(ClusterSpec(nodes=2), "c", interrupt, environ)
    assert not of_cluster(scratches[0])
    assert not scratches[0].exists()
    assert known.names() == []


def test_nodes_that_are_not_seen_are_told_of(environ: dict[str, str], monkeypatch: pytest.MonkeyPatch):
    def refuse(_: object) -> list[NodeNow]:
        raise NoAnswer("the token is refused")

    monkeypatch.setattr(dashboard, "nodes", refuse)
    with pytest.raises(RuntimeError, match="the dashboard does not answer: the token is refused"):
        start.start(ClusterSpec(), "c", lambda _: None, environ)
    assert known.names() == []


def test_one_whose_head_was_killed_is_told_of_and_cleaned_up(environ: dict[str, str], capsys: Capture):
    assert main(["cluster", "up", "cluster.nodes=2"]) == 0
    cluster = known.find("local")
    os.kill(cluster.processes[0].pid, signal.SIGKILL)
    assert cluster.processes[0].wait(5)
    assert main(["cluster", "status", "local"]) == 1
    assert "its head has ended" in capsys.readouterr().out
    with pytest.raises(UserError, match="its head has ended"):
        known.find("local")
    assert len(of_cluster(cluster.scratch)) == 5
    assert main(["cluster", "up"]) == 0  # in its place
    assert "cleaning up after local" in capsys.readouterr().err
    assert not of_cluster(cluster.scratch)
    assert main(["cluster", "down", "cluster.name=local"]) == 0


def test_two_stand_side_by_side_and_one_ends_alone(environ: dict[str, str], capsys: Capture):
    assert main(["cluster", "up", "cluster.name=a"]) == 0
    assert main(["cluster", "up", "cluster.name=b"]) == 0
    assert "cluster=running cluster.name=b" in capsys.readouterr().err
    assert main(["cluster", "down"]) == 2
    assert "there are a, b" in capsys.readouterr().err
    a, b = known.find("a"), known.find("b")
    assert len({a.token, b.token, a.gcs_address, b.gcs_address, a.jobs_url, b.jobs_url, a.scratch, b.scratch}) == 8
    assert main(["cluster", "down", "a"]) == 0
    assert known.find(None) == b
    assert len(of_cluster(b.scratch)) == 3


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["up", "cluster=existing"], "starts nodes on this machine"),
        (["up", "cluster.nodes=0"], "cluster.nodes must be >= 1"),
        (["up", "cluster.nodes=3", "cluster.max_nodes=2"], "cluster.max_nodes must be >= cluster.nodes=3"),
        (["up", "three"], "is not key=value"),
        (["up", "--json"], "unknown option '--json'"),
        (["status", "nowhere"], "no such cluster on this machine"),
        (["status", "a", "b"], "the name of one cluster"),
        (["down", "../x"], "cluster.name must be"),
        ([], "up|status|down"),
    ],
)
def test_a_mistake_is_one_line(environ: dict[str, str], capsys: Capture, words: list[str], says: str):
    assert main(["cluster", *words]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1


def test_a_process_that_has_the_number_of_a_dead_leader_is_let_be(environ: dict[str, str], tmp_path: Path):
    cluster = known.KnownCluster(
        name="old",
        gcs_address="127.0.0.1:1",
        jobs_url="http://127.0.0.1:1",
        token="t",
        folder=tmp_path / "clusters" / "old",
        processes=(type(this_process())(**{**as_dict(this_process()), "started_ticks": 1}),),
    )
    known.write(cluster)
    assert processes_of(cluster) == []
    end(cluster, environ)
    assert known.names() == []


def as_dict(process: object) -> dict:
    return {name: getattr(process, name) for name in ("host", "boot_id", "pid", "started_ticks")}


def test_a_node_knows_no_other_cluster_and_its_environment_no_token(
    environ: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "another's")
    cluster = known.KnownCluster(
        name="c",
        gcs_address="127.0.0.1:1",
        jobs_url="http://127.0.0.1:1",
        token="its own",
        folder=tmp_path / "c",
        scratch=tmp_path / "scratch",
    )
    environment = start.node_environment(cluster, [1, 2], is_autoscaled=False)
    assert "RAY_ADDRESS" not in environment
    assert "RAY_FAKE_CLUSTER" not in environment
    assert not {"another's", "its own"} & set(environment.values())
    assert environment["RAY_AUTH_TOKEN_PATH"] == str(tmp_path / "c" / "token")
    assert environment["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"
    assert start.node_environment(cluster, [1, 2], is_autoscaled=True)["RAY_FAKE_CLUSTER"] == "1"


def test_the_autoscaler_may_start_what_is_missing_to_the_most():
    cluster = known.KnownCluster(
        name="c", gcs_address="127.0.0.1:7", jobs_url="http://127.0.0.1:8", token="t", folder=Path("c")
    )
    head = NodeSpec(
        name="head",
        gcs_address=None,
        gcs_port=7,
        dashboard_port=8,
        agent_port=9,
        num_cpus=3,
        object_store_bytes=1 << 30,
        scratch="s",
    )
    found = start.autoscaling(ClusterSpec(nodes=2, max_nodes=5, idle_s=30), cluster, head)
    worker = found["available_node_types"]["worker"]
    assert (worker["min_workers"], worker["max_workers"], found["max_workers"]) == (1, 4, 4)
    assert worker["resources"] == {"CPU": 3, "object_store_memory": 1 << 30}
    assert found["idle_timeout_minutes"] == 0.5
    assert found["provider"]["gcs_address"] == "127.0.0.1:7"


def test_ports_are_free_and_differ():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        ports = free_ports(20)
        assert len(set(ports)) == 20
        assert taken.getsockname()[1] not in ports
    for port in ports:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", port))


def test_another_start_at_the_same_time_is_refused(environ: dict[str, str], capsys: Capture):
    with known.claimed():
        assert main(["cluster", "up"]) == 2
        assert "another manta cluster up or down is at work" in capsys.readouterr().err


def test_help_shows_the_actions(capsys: Capture):
    ask: Callable[[list[str]], int]
    for ask in (verb.up, verb.status, verb.down):
        assert ask(["--help"]) == 0
        assert "manta cluster down [NAME]" in capsys.readouterr().out
