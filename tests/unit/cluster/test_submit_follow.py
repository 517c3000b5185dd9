"""Following a job, with a cluster that a test plays."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from cluster.submit import follow as module
from cluster.submit import verb
from cluster.submit.attempt import Phase, Submission
from cluster.submit.client import ClusterGone, Exists
from cluster.submit.follow import Log, follow
from cluster.submit.parcel import Where, make_parcel
from conf import entry
from conf.errors import UserError
from conf.schema.submit import SubmitSpec
from serve.service import LEAVE_S
from serve.service_verb import END_S

RAYS = "2026-11-26 INFO job_manager.py:581 -- Runtime env is setting up.\nRunning entrypoint for job j: x\n"


class Cluster:
    """What a test says of each submission, one look after the other; the last one stays."""

    def __init__(self, looks: dict[str, list[Submission | Exception]], log: str = "", breaks_at: int | None = None):
        self.looks = looks
        self.sent: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self._log = log
        self._breaks_at = breaks_at
        self.api = type("Api", (), {"url": "http://head:1"})()

    def submissions(self) -> list[Submission]:
        found = [looks[0] for name, looks in self.looks.items() if name.startswith("known:")]
        return [each for each in found if isinstance(each, Submission)]

    def submission(self, submission_id: str) -> Submission:
        looks = self.looks[submission_id]
        look = looks.pop(0) if len(looks) > 1 else looks[0]
        if isinstance(look, Exception):
            raise look
        return look

    def submit(self, submission_id: str, entrypoint: str, runtime_env: dict, metadata: dict, cpus: float) -> None:
        if submission_id in [name for name, *_ in self.sent]:
            raise Exists
        self.sent.append((submission_id, metadata, runtime_env))

    def log(self, submission_id: str) -> str:
        return self._log

    async def tail(self, submission_id: str) -> AsyncIterator[str]:
        if self._breaks_at is not None:
            position, self._breaks_at = self._breaks_at, None
            yield self._log[:position]
            raise ClusterGone
        for sign in self._log:
            yield sign
            await asyncio.sleep(0)
        await asyncio.sleep(60)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POLL_S", 0.01)
    monkeypatch.setattr(module, "AGAIN_S", 0.01)
    monkeypatch.setattr(module, "GONE_S", 0.1)


def made(phase: Phase, code: int | None = None, name: str = "j", **metadata: str) -> Submission:
    return Submission(id=name, phase=phase, exit_code=code, metadata={"verb": "batch", **metadata})


def test_each_line_is_shown_once_whichever_way_the_log_is_read():
    lines: list[str] = []
    log, text = Log(lines.append), f"{RAYS}first\nsecond\nlast"
    position = log.take(0, text[: len(RAYS) + 3])
    log.take(position, text[position : len(RAYS) + 8])
    log.take(0, text[:5])
    log.take(0, text)
    assert lines == ["first", "second"]
    log.close()
    assert lines == ["first", "second", "last"]


@pytest.mark.parametrize("breaks_at", [None, 3, len(RAYS) + 2])
def test_a_job_is_followed_to_its_end_though_the_connection_breaks(breaks_at: int | None):
    lines: list[str] = []
    looks: list[Submission | Exception] = [made(Phase.pending), made(Phase.running), ClusterGone("x")]
    cluster: Any = Cluster({"j": [*looks, made(Phase.failed, 3)]}, f"{RAYS}one\ntwo\n", breaks_at)
    assert follow(cluster, "j", lines.append).exit_code == 3
    assert lines == ["one", "two"]


def test_a_service_is_followed_until_it_says_that_it_is_ready():
    lines: list[str] = []
    cluster: Any = Cluster({"j": [made(Phase.running)]}, "starting\nready: manta jobs stop j\n")
    assert follow(cluster, "j", lines.append, "manta jobs stop j").phase is Phase.running
    assert lines == ["starting", "ready: manta jobs stop j"]


def test_a_cluster_that_answers_no_more_is_gone():
    cluster: Any = Cluster({"j": [made(Phase.running), ClusterGone("nothing listens")]}, "one\n")
    with pytest.raises(ClusterGone, match="nothing listens"):
        follow(cluster, "j", lambda line: None)


def test_one_that_waits_is_told_of_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "WAIT_S", 0.0)
    told: list[str] = []
    looks: list[Submission | Exception] = [made(Phase.pending), made(Phase.pending), made(Phase.pending)]
    cluster: Any = Cluster({"j": [*looks, made(Phase.succeeded, 0)]})
    follow(cluster, "j", lambda line: None, on_wait=lambda: told.append("waits"))
    assert told == ["waits"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.jsonl").write_text('{"q": "why"}\n')
    return tmp_path


def dispatch(cluster: Any, here: Path, verb_name: str = "batch", **spec: Any) -> tuple[verb._Dispatch, str]:
    words = ["model=demo", *(["data.input=in.jsonl", "data.prompt={{ q }}"] if verb_name == "batch" else [])]
    where = Where(token="t" * 32, is_local=True, address="127.0.0.1:1", words="")
    parcel = make_parcel(verb_name, entry.compose(verb_name, *words), SubmitSpec(**spec), where, here, here)
    for name in list(cluster.looks):
        cluster.looks[name.replace("BASE", parcel.base)] = cluster.looks.pop(name)
    return verb._Dispatch(parcel, cluster), parcel.base


def test_a_driver_that_dies_is_started_again_as_often_as_the_policy_says(
    here: Path, capsys: pytest.CaptureFixture[str]
):
    cluster: Any = Cluster({})
    dispatcher, base = dispatch(cluster, here, max_restarts=2)
    for number, name in enumerate((base, f"{base}-2", f"{base}-3")):
        cluster.looks[name] = [made(Phase.running, name=name), made(Phase.failed, name=name, restarts=str(number))]
    assert dispatcher.run(is_again=False, waits=True) == 1
    assert [(name, metadata["restarts"]) for name, metadata, _ in cluster.sent] == [
        (base, "0"),
        (f"{base}-2", "1"),
        (f"{base}-3", "2"),
    ]
    said = capsys.readouterr().err
    assert f"{base}: its driver died (with its node); it goes on as {base}-2, restart 1 of 2" in said
    assert said.splitlines()[-1] == f"manta submit: {base}-3: its driver died (with its node)"


def test_one_that_goes_on_after_its_driver_died_ends_with_its_own_exit_code(here: Path):
    cluster: Any = Cluster({})
    dispatcher, base = dispatch(cluster, here)
    cluster.looks[base] = [made(Phase.failed, -9, name=base)]
    cluster.looks[f"{base}-2"] = [made(Phase.failed, 3, name=f"{base}-2", restarts="1")]
    assert dispatcher.run(is_again=False, waits=True) == 3


def test_the_user_s_mistake_on_the_cluster_is_not_tried_again(here: Path):
    cluster: Any = Cluster({})
    dispatcher, base = dispatch(cluster, here)
    cluster.looks[base] = [made(Phase.failed, 2, name=base)]
    assert dispatcher.run(is_again=False, waits=True) == 2
    assert len(cluster.sent) == 1


def test_what_is_not_waited_for_says_how_it_is_followed_and_ended(here: Path, capsys: pytest.CaptureFixture[str]):
    dispatcher, base = dispatch(Cluster({}), here)
    assert dispatcher.run(is_again=False, waits=False) == 0
    said = capsys.readouterr().err
    assert f"manta jobs logs {base} --follow" in said
    assert f"manta jobs stop {base}" in said


def test_ctrl_c_leaves_the_job_running(here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    def interrupted(*_: Any) -> Submission:
        raise KeyboardInterrupt

    monkeypatch.setattr(verb, "follow", interrupted)
    dispatcher, base = dispatch(Cluster({}), here)
    assert dispatcher.run(is_again=False, waits=True) == 130
    assert f"{base} goes on: manta jobs logs {base} --follow" in capsys.readouterr().err


def test_one_that_runs_cannot_be_run_again(here: Path):
    cluster: Any = Cluster({"known:": []})
    dispatcher, base = dispatch(cluster, here)
    cluster.looks["known:"] = [made(Phase.running, name=base)]
    with pytest.raises(UserError, match=f"--again: {base} runs"):
        dispatcher.run(is_again=True, waits=True)


def test_the_package_says_all_and_holds_no_secret(here: Path, monkeypatch: pytest.MonkeyPatch):
    import zipfile

    import msgspec

    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    cluster: Any = Cluster({})
    dispatcher, base = dispatch(cluster, here, env=["HF_TOKEN"], files=["in.jsonl"])
    assert dispatcher.run(is_again=False, waits=False) == 0
    (_, metadata, runtime_env) = cluster.sent[0]
    with zipfile.ZipFile(runtime_env["working_dir"]) as package:
        order = msgspec.json.decode(package.read("_manta/order.json"))
        assert package.read("_files/in.jsonl") == b'{"q": "why"}\n'
        assert not [name for name in package.namelist() if b"hf_secret" in package.read(name)]
    assert (order["verb"], order["job"]["data"]["input"]) == ("batch", "_files/in.jsonl")
    assert order["job"]["cluster"]["address"] == "127.0.0.1:1"
    assert order["job"]["output"]["path"] == str(here / "out" / f"demo-{base.rpartition('-')[2]}")
    assert "hf_secret" not in str([metadata, runtime_env])
    assert "HF_TOKEN" not in runtime_env["env_vars"]
    assert runtime_env["worker_process_setup_hook"] == "cluster.submit.seal.open_env"


def test_a_service_gets_the_time_that_draining_takes(here: Path):
    cluster: Any = Cluster({})
    dispatcher, base = dispatch(cluster, here, "serve")
    dispatcher.run(is_again=False, waits=False)
    assert base.startswith("manta-serve-")
    assert int(cluster.sent[0][1]["stop_s"]) > LEAVE_S + END_S + 60  # deployment.drain_s
    assert cluster.sent[0][2]["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"] == cluster.sent[0][1]["stop_s"]
