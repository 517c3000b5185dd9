"""`manta cluster render`: the verb, and the files that are committed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from fleets import KUBERAY, LAUNCHED, ROOT, fleet_of

from cluster.render import render
from conf import cli, entry

RENDERED = ROOT / "cluster" / "rendered"
Capture = pytest.CaptureFixture[str]


def files_of(name: str) -> list[str]:
    return ["cluster.yaml"] if name in LAUNCHED else ["raycluster.yaml", "rayjob.yaml", "rayservice.yaml"]


def test_every_cluster_that_is_shipped_is_rendered():
    assert sorted(entry.options("fleet")) == sorted((*LAUNCHED, *KUBERAY))
    assert sorted(path.name for path in RENDERED.iterdir()) == entry.options("fleet")


@pytest.mark.parametrize("name", [*LAUNCHED, *KUBERAY])
def test_committed_files_are_what_the_configuration_says(name: str):
    files = render(fleet_of(name), [f"fleet={name}"])
    assert list(files) == files_of(name)
    assert sorted(path.name for path in (RENDERED / name).iterdir()) == sorted(files)
    for file, text in files.items():
        assert (RENDERED / name / file).read_text() == text, f"make render: {name}/{file} has drifted"


@pytest.mark.parametrize("key", ["cluster", "fleet"])
def test_the_command_writes_what_is_committed(key: str, tmp_path: Path, capsys: Capture):
    assert cli.main(["cluster", "render", f"{key}=aws", "--out", str(tmp_path / "new" / "folder")]) == 0
    out, err = capsys.readouterr()
    assert out == f"{tmp_path}/new/folder/cluster.yaml\n"
    assert "ray up" in err
    assert (tmp_path / "new" / "folder" / "cluster.yaml").read_text() == (RENDERED / "aws" / "cluster.yaml").read_text()


def test_a_word_changes_what_it_says_and_the_file_tells_how_it_was_made(tmp_path: Path, capsys: Capture):
    words = ["cluster=gcp", "cluster.workers.gpu_spot.max_nodes=3", "cluster.name=night"]
    assert cli.main(["cluster", "render", *words, f"--out={tmp_path}"]) == 0
    text = (tmp_path / "cluster.yaml").read_text()
    assert text.startswith(f"# Made by: manta cluster render {' '.join(words)}\n")
    config = yaml.safe_load(text)
    assert (config["cluster_name"], config["max_workers"]) == ("night", 7)
    kinds = config["available_node_types"]
    assert (kinds["gpu_spot"]["max_workers"], kinds["gpu_on_demand"]["max_workers"]) == (3, 4)
    capsys.readouterr()


def test_without_out_it_writes_below_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["cluster", "render", "cluster=on_prem"]) == 0
    assert (tmp_path / "out/render/manta-on_prem/cluster.yaml").is_file()


def test_help_names_the_command_its_groups_and_keys(capsys: Capture):
    assert cli.main(["cluster", "render", "--help"]) == 0
    out = capsys.readouterr().out
    assert "usage: manta cluster render [group=option ...]" in out
    assert "fleet=aws|gcp|kuberay" in out
    assert "fleet.kube.token_secret=manta-ray-token" in out
    assert "--cfg" not in out


@pytest.mark.parametrize(
    "words, said",
    [
        (["cluster=awz"], "no option 'awz' of fleet; did you mean 'aws'? (there are aws, gcp, kuberay"),
        (["cluster=aws", "cluster.regoin=x"], "unknown key 'fleet.regoin'"),
        (["cluster=aws", "--outt", "x"], "unknown option '--outt'; did you mean '--out'? (there are --out, --help)"),
        (["cluster=aws", "--out"], "--out takes a folder"),
        (["cluster=aws", "--out", "/proc/no/such"], "--out /proc/no/such: "),
        (
            ["cluster=aws", "cluster.workers.gpu_spot.hardware=h20"],
            "fleet.workers.gpu_spot.hardware must be a profile, got",
        ),
        (
            ["cluster=kuberay", "cluster.batch=['data.inptu=x']"],
            "fleet.batch must be words of manta batch: unknown key",
        ),
        (
            ["cluster=kuberay", "cluster.serve=['engine.max_num_seqs=0']"],
            "fleet.serve must be words of manta serve: engine.",
        ),
    ],
)
def test_a_mistake_is_one_line(words: list[str], said: str, capsys: Capture, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["cluster", "render", *words]) == 2
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1), err
    assert said in err
    assert not list(tmp_path.rglob("*.yaml")), "a mistake writes nothing"


def test_no_file_holds_a_secret():
    """The token and the keys are named, and stand elsewhere."""
    for path in RENDERED.rglob("*.yaml"):
        text = path.read_text()
        assert not re.search(r"RAY_AUTH_TOKEN\b(?!_)|BEGIN [A-Z ]*PRIVATE KEY|kind: Secret|sk-[A-Za-z0-9]{8}", text), (
            path
        )
        for line in text.splitlines():
            if "MANTA_API_KEY" in line:
                assert line.strip() in ("- name: MANTA_API_KEYS", "key: MANTA_API_KEYS"), line


def test_the_images_ray_is_the_one_that_is_locked():
    for extra in ("cpu", "gpu"):
        locked = re.search(r"^ray==(\S+)$", (ROOT / "requirements" / f"{extra}.txt").read_text(), re.MULTILINE)
        assert locked
        assert fleet_of("kuberay").ray_version == locked[1]
