from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path

import pytest

from cluster import known
from cluster.known import KnownCluster
from cluster.own_file import write_own
from cluster.process import this_process
from conf.errors import UserError
from conf.schema.cluster import ClusterSpec

TOKEN = "0123456789abcdef" * 2


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"MANTA_CLUSTERS": str(tmp_path / "clusters")}


def put(environ: dict[str, str], name: str = "local", is_alive: bool = True) -> KnownCluster:
    process = this_process()
    cluster = KnownCluster(
        name=name,
        gcs_address="127.0.0.1:6380",
        jobs_url="http://127.0.0.1:8266",
        token=TOKEN,
        folder=known.clusters_folder(environ) / name,
        processes=(process if is_alive else replace(process, started_ticks=1), process),
        scratch=Path("/tmp/nowhere"),
    )
    known.write(cluster)
    return cluster


def test_what_was_written_is_found(environ: dict[str, str]):
    cluster = put(environ)
    assert known.find("local", environ) == known.find(None, environ) == cluster
    assert known.names(environ) == ["local"]
    for path in (cluster.folder / "token", cluster.folder / "cluster.json"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert TOKEN not in (cluster.folder / "cluster.json").read_text()


def test_a_token_is_not_shown(environ: dict[str, str]):
    cluster = put(environ)
    assert TOKEN not in repr(cluster)
    assert TOKEN not in repr(cluster.jobs)


def test_without_a_name_it_is_the_only_one_that_runs(environ: dict[str, str]):
    with pytest.raises(UserError, match="no cluster runs on this machine"):
        known.find(None, environ)
    put(environ, "gone", is_alive=False)
    with pytest.raises(UserError, match="no cluster runs on this machine"):
        known.find(None, environ)
    put(environ, "a")
    assert known.find(None, environ).name == "a"
    put(environ, "b")
    with pytest.raises(UserError, match=r"must say which: there are a, b$"):
        known.find(None, environ)


def test_one_that_is_not_there_is_named_with_what_is(environ: dict[str, str]):
    with pytest.raises(UserError, match=r"cluster\.name=locl: no such cluster .*manta cluster up"):
        known.find("locl", environ)
    put(environ)
    with pytest.raises(UserError, match="did you mean 'local'"):
        known.find("locl", environ)
    put(environ, is_alive=False)
    with pytest.raises(UserError, match=r"its head has ended: .*manta cluster down cluster\.name=local"):
        known.find("local", environ)


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b", ".a", "a\n", "x" * 64])
def test_a_name_that_is_none_names_no_folder(environ: dict[str, str], name: str):
    for ask in (known.find, known.read, known.forget):
        with pytest.raises(UserError, match=r"cluster\.name must be"):
            ask(name, environ)


@pytest.mark.parametrize("data", [b"", b"{", b"{}", b"[" * 100_000, b'{"processes": [{"pid": -1}]}'])
def test_a_broken_record_is_refused_in_one_line(environ: dict[str, str], data: bytes):
    write_own(put(environ).folder / "cluster.json", data)
    with pytest.raises(UserError, match="not the folder of a cluster 'local'; remove it") as raised:
        known.find("local", environ)
    assert "\n" not in str(raised.value)


def test_what_others_may_write_is_refused(environ: dict[str, str]):
    cluster = put(environ)
    (cluster.folder / "token").chmod(0o622)
    with pytest.raises(UserError, match="nobody else may write"):
        known.find("local", environ)


def test_it_is_forgotten_twice(environ: dict[str, str]):
    cluster = put(environ)
    known.forget("local", environ)
    known.forget("local", environ)
    assert not cluster.folder.exists()
    assert known.read("local", environ) is None


def test_jobs_go_to_a_cluster_here_or_elsewhere(environ: dict[str, str]):
    put(environ)
    assert known.jobs_api(ClusterSpec(), environ) == known.JobsApi(url="http://127.0.0.1:8266", token=TOKEN)
    there = ClusterSpec(jobs_url="http://head:8265/")
    with pytest.raises(UserError, match=r"cluster\.jobs_url=http://head:8265/: set MANTA_CLUSTER_TOKEN"):
        known.jobs_api(there, environ)
    for extra in ({"RAY_AUTH_TOKEN": "r"}, {"RAY_AUTH_TOKEN": "x", "MANTA_CLUSTER_TOKEN": "r"}):
        assert known.jobs_api(there, environ | extra) == known.JobsApi(url="http://head:8265", token="r")


@pytest.mark.parametrize("url", ["head:8265", "http://head", "ftp://head:1", "http://:1", "http://head:99999"])
def test_an_address_for_jobs_is_one(url: str):
    with pytest.raises(UserError, match=r"cluster\.jobs_url must be"):
        ClusterSpec(jobs_url=url)


@pytest.mark.parametrize(
    ("environ", "folder"),
    [
        ({"MANTA_CLUSTERS": "/c", "MANTA_HOME": "/m"}, "/c"),
        ({"MANTA_HOME": "/m", "XDG_STATE_HOME": "/x"}, "/m/clusters"),
        ({"XDG_STATE_HOME": "/x"}, "/x/manta/clusters"),
        ({}, str(Path("~/.local/state/manta/clusters").expanduser())),
    ],
)
def test_where_clusters_are_known(environ: dict[str, str], folder: str):
    assert str(known.clusters_folder(environ)) == folder
