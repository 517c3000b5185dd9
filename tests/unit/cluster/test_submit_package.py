from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path

import pytest

from cluster.submit.package import check_size, digests, named_files, own_code, write_package
from cluster.submit.parcel import pip_environment
from conf.errors import UserError
from conf.schema.submit import Environment, SubmitSpec


def repository(folder: Path) -> Path:
    folder.mkdir()
    (folder / "tracked.txt").write_text("a")
    (folder / "untracked.txt").write_text("b")
    for words in (["init", "-q"], ["add", "tracked.txt"]):
        subprocess.run(["git", "-C", str(folder), *words], check=True)
    return folder


def test_the_code_travels_and_nothing_of_python_s_or_the_tests():
    code = own_code()
    assert {place.split("/")[0] for place in code} == {"conf", "serve", "pipelines", "cluster"}
    assert {"conf/batch.yaml", "conf/cli.py", "cluster/submit/order.py"} <= set(code)
    assert not [place for place in code if "__pycache__" in place or place.endswith(".pyc")]


def test_of_a_repository_s_folder_only_what_is_tracked_travels(tmp_path: Path):
    folder = repository(tmp_path / "r")
    assert list(named_files([folder], tmp_path)) == ["_files/r/tracked.txt"]
    named = named_files([folder / "untracked.txt"], tmp_path)
    assert named == {"_files/r/untracked.txt": folder / "untracked.txt"}


def test_of_another_folder_all_travels(tmp_path: Path):
    (tmp_path / "d" / "__pycache__").mkdir(parents=True)
    (tmp_path / "d" / "__pycache__" / "x.pyc").write_text("")
    (tmp_path / "d" / "a").write_text("a")
    assert list(named_files([tmp_path / "d"], tmp_path)) == ["_files/d/a"]


def test_a_file_that_is_not_there_and_a_folder_with_nothing_in_it_are_mistakes(tmp_path: Path):
    with pytest.raises(UserError, match=r"submit.files: .*/no: no such file or folder"):
        named_files([tmp_path / "no"], tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="nothing"):
        named_files([tmp_path / "empty"], tmp_path)


def test_equal_content_makes_an_equal_package(tmp_path: Path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "f").write_text("same")
        write_package(tmp_path / f"{name}.zip", {"x/f": tmp_path / name / "f"}, {"t": b"text"})
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip") as package:
        assert {name: package.read(name) for name in package.namelist()} == {"x/f": b"same", "t": b"text"}
    (tmp_path / "b" / "f").write_text("other")
    assert digests({"f": tmp_path / "a" / "f"}) != digests({"f": tmp_path / "b" / "f"})


def test_too_much_is_refused_and_the_longest_named(tmp_path: Path):
    (tmp_path / "long").write_bytes(b"x" * 100)
    (tmp_path / "short").write_bytes(b"x")
    files = {"long": tmp_path / "long", "short": tmp_path / "short"}
    assert check_size(files, 101) == 101
    with pytest.raises(UserError, match=r"submit.max_bytes=100: 101 bytes would travel \(.*/long alone has 100\)"):
        check_size(files, 100)


def test_a_lock_is_installed_as_it_is_but_for_what_is_the_nodes_own(tmp_path: Path):
    lock = tmp_path / "lock.txt"
    lock.write_text("# by uv\n--index-url x\nray==2.60.0\ntorch==2.13.0\nmsgspec==0.22 ; python_version > '3'  # why\n")
    found = pip_environment(lock)
    assert found["packages"] == ["msgspec==0.22 ; python_version > '3'"]
    assert "--no-deps" in found["pip_install_options"]
    lock.write_text("ray==2.60.0\n")
    with pytest.raises(UserError, match="names no package"):
        pip_environment(lock)
    with pytest.raises(UserError, match="No such file"):
        pip_environment(tmp_path / "no.txt")


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_the_shipped_locks_name_one_version_of_each_package(device: str):
    packages = pip_environment(Path(__file__).parents[3] / "requirements" / f"{device}.txt")["packages"]
    assert len(packages) > 100
    assert all("==" in package for package in packages)


@pytest.mark.parametrize(
    "wrong,message",
    [
        ({"max_bytes": 0}, "submit.max_bytes must be >= 1"),
        ({"env": ["A=b"]}, "submit.env takes names"),
        ({"lock": "x"}, "submit.lock needs submit.environment=lock"),
        ({"driver_cpus": -1}, "submit.driver_cpus must be >= 0"),
        ({"max_restarts": -1}, "submit.max_restarts must be >= 0"),
    ],
)
def test_what_breaks_a_rule_is_named(wrong: dict, message: str):
    with pytest.raises(UserError, match=message):
        SubmitSpec(**wrong)
    assert SubmitSpec(lock="x", environment=Environment.lock).lock == "x"
