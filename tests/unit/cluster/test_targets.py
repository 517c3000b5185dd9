"""Clusters tell Prometheus of themselves while they live."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from cluster import targets


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "node_addresses", lambda: ["127.0.0.1:1", "127.0.0.2:2"])


@pytest.mark.usefixtures("nodes")
def test_nodes_are_told_of_until_the_cluster_ends(tmp_path: Path):
    folder = tmp_path / "metrics"
    with targets.announced(folder):
        (place,) = folder.iterdir()
        assert place.name == f"{os.getpid()}.json"
        assert json.loads(place.read_text()) == [{"targets": ["127.0.0.1:1", "127.0.0.2:2"], "labels": {"job": "ray"}}]
    assert not list(folder.iterdir())


@pytest.mark.usefixtures("nodes")
def test_who_died_without_a_word_is_forgotten_and_others_are_not(tmp_path: Path):
    dead, living, foreign = (tmp_path / name for name in ("99999999.json", "1.json", "mine.json"))
    for path in (dead, living, foreign):
        path.write_text("[]")
    with targets.announced(tmp_path):
        assert not dead.exists()
    assert sorted(tmp_path.iterdir()) == [living, foreign]


@pytest.mark.usefixtures("nodes")
def test_a_folder_that_cannot_be_written_costs_no_job(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with targets.announced(tmp_path / "file" / "metrics"):
        pass


def test_the_folder_is_the_users():
    assert targets.targets_folder({"MANTA_HOME": "/m"}) == Path("/m/metrics")
    assert targets.targets_folder({"XDG_STATE_HOME": "/x"}) == Path("/x/manta/metrics")
    assert targets.targets_folder({}) == Path.home() / ".local/state/manta/metrics"


@pytest.mark.usefixtures("nodes")
def test_a_cluster_that_outlives_its_starter_is_told_of_by_rays_own_list(tmp_path: Path):
    folder, listing = tmp_path / "metrics", tmp_path / "head" / "list.json"
    listing.parent.mkdir()
    targets.announce_cluster(folder, "local", listing)
    with targets.announced(folder):  # the list may yet have to be written
        pass
    listing.write_text('[{"targets": ["127.0.0.1:3"]}]')
    (place,) = folder.glob("*.json")
    assert json.loads(place.read_text())[0]["targets"] == ["127.0.0.1:3"]
    targets.announce_cluster(folder, "local", listing)
    assert list(folder.iterdir()) == [place]
    targets.withdraw_cluster(folder, "local")
    targets.withdraw_cluster(folder, "local")
    assert not list(folder.iterdir())


@pytest.mark.usefixtures("nodes")
def test_a_cluster_whose_folder_is_gone_is_forgotten(tmp_path: Path):
    targets.announce_cluster(tmp_path / "metrics", "local", tmp_path / "gone" / "list.json")
    with targets.announced(tmp_path / "metrics"):
        assert [path.stem for path in (tmp_path / "metrics").iterdir()] == [str(os.getpid())]
