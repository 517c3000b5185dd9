"""What becomes of a local Ray's processes when the one that started it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from cluster.child import manta_environment
from cluster.guard import OWNER, guarded

DRIVER = """
import json, os, subprocess, sys, time
from pathlib import Path
from cluster.guard import OWNER, guarded
folder = Path(sys.argv[1])
def child(**options):
    words = [sys.executable, "-c", "import time; time.sleep(600)"]
    return subprocess.Popen(words, start_new_session=True, **options).pid
try:
    with guarded(folder):
        marked = child()
        with (folder / "log").open("w") as log:  # one that has written its title over its environment
            others = {key: value for key, value in os.environ.items() if key != OWNER}
            titled, agent = child(stdout=log, env=others), child(pass_fds=[log.fileno()], env=others)
        with (folder / "log").open() as log:  # who only reads it, and one that has nothing to do with it
            reader, foreign = child(stdin=log, env=others), child(env=others)
        print(json.dumps([marked, titled, agent, reader, foreign]), flush=True)
        time.sleep(float(sys.argv[2]))
        if sys.argv[3] == "interrupt":
            raise KeyboardInterrupt
except KeyboardInterrupt:
    os._exit(130)
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="manta-", ignore_cleanup_errors=True) as made:
        yield Path(made)


def start(folder: Path, seconds: float, how: str = "") -> tuple[subprocess.Popen[str], list[psutil.Process]]:
    words = [sys.executable, "-c", DRIVER, str(folder), str(seconds), how]
    driver = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=manta_environment())
    assert driver.stdout is not None
    pids = json.loads(driver.stdout.readline())
    return driver, [psutil.Process(pid) for pid in pids]


def end(driver: subprocess.Popen[str], children: list[psutil.Process]) -> None:
    assert driver.stdout is not None
    driver.stdout.close()
    driver.wait(20)
    for child in children:
        if child.is_running():
            child.kill()


@pytest.mark.parametrize("how", ["kill", "interrupt"])
def test_what_is_its_own_ends_with_a_driver_that_is_killed_and_nothing_else(folder: Path, how: str):
    driver, children = start(folder, 600 if how == "kill" else 0, how)
    try:
        if how == "kill":
            os.kill(driver.pid, signal.SIGKILL)
        gone, left = psutil.wait_procs(children[:3], timeout=15)
        assert (len(gone), left) == (3, [])
        assert all(child.is_running() for child in children[3:])
        for _ in range(100):
            if not folder.exists():
                break
            psutil.wait_procs(children[3:], timeout=0.05)
        assert not folder.exists()
    finally:
        end(driver, children)


def test_a_driver_that_ends_by_itself_has_ended_its_ray(folder: Path):
    driver, children = start(folder, 0)
    try:
        assert driver.wait(20) == 0
        assert all(child.is_running() for child in children)
        assert folder.exists()
    finally:
        end(driver, children)


def test_the_mark_is_for_the_cluster_s_life_only(folder: Path):
    with guarded(folder):
        assert os.environ[OWNER] == str(folder)
    assert OWNER not in os.environ
