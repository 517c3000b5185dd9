from __future__ import annotations

import os
from pathlib import Path

import pytest

from cluster.connect import _start, _use, connect
from cluster.known import KnownCluster
from cluster.process import this_process
from conf.errors import UserError
from conf.schema.cluster import ClusterSpec


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> KnownCluster:
    monkeypatch.setenv("MANTA_CLUSTERS", str(tmp_path))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, "another's")
    return KnownCluster(
        name="c",
        gcs_address="127.0.0.1:1",
        jobs_url="http://127.0.0.1:2",
        token="t",
        folder=tmp_path / "c",
        processes=(this_process(),),
    )


def test_the_cluster_s_own_token_is_taken_and_no_other(cluster: KnownCluster):
    assert _use(cluster) == "127.0.0.1:1"
    assert os.environ["RAY_AUTH_MODE"] == "token"
    assert os.environ["RAY_AUTH_TOKEN_PATH"] == str(cluster.folder / "token")
    assert "RAY_AUTH_TOKEN" not in os.environ


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        (ClusterSpec(nodes=3), r"cluster\.nodes=3 is for manta cluster up; then: cluster=running"),
        (ClusterSpec(address="running"), r"cluster\.name: no cluster runs on this machine"),
        (ClusterSpec(address="running", name="x"), r"cluster\.name=x: no such cluster"),
    ],
)
def test_what_is_not_there_is_told_before_ray_is_asked(
    cluster: KnownCluster, tmp_path: Path, spec: ClusterSpec, says: str
):
    with pytest.raises(UserError, match=says):
        connect(spec, 1, tmp_path).__enter__()


@pytest.mark.parametrize(("own", "needed", "counted"), [(None, 1, 3), (None, 8, 8), (2, 8, 2)])
def test_a_local_cluster_counts_the_cores_that_its_process_may_use(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, own: int | None, needed: int, counted: int
):
    asked: dict[str, object] = {}
    monkeypatch.setattr("ray.init", lambda **options: asked.update(options))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 7})
    _start(ClusterSpec(num_cpus=own), needed, tmp_path)
    assert asked["num_cpus"] == counted
