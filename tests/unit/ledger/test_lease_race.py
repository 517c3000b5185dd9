"""Of drivers that come at the same moment exactly one gets the folder."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs as pafs

from conf.errors import UserError
from pipelines.ledger import lease as lease_module
from pipelines.ledger.folder import Folder
from pipelines.ledger.lease import Lease
from pipelines.storage import Location, locate


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "SETTLE_S", lease_module.LOCAL_SETTLE_S)


def local_folder(path: str) -> Folder:
    return Folder(root=locate(path, "output.path"), suffix="parquet")


@pytest.fixture(params=["local", "bucket"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    if request.param == "local":
        return local_folder(str(tmp_path / "out"))
    tree = pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem())
    return Folder(root=Location(filesystem=tree, path="out"), suffix="parquet")


def contend(folder: Folder, start: Callable[[], Any], end: Callable[[], Any]) -> bool:
    """Tries to take the lease when all are ready; one that has it keeps it until all have tried."""
    start()
    try:
        with Lease(folder):
            end()
            return True
    except UserError:
        end()
        return False


@pytest.mark.parametrize("contenders", [2, 3])
def test_of_drivers_that_come_at_once_exactly_one_wins(folder: Folder, contenders: int) -> None:
    barrier = threading.Barrier(contenders)
    with ThreadPoolExecutor(contenders) as pool:
        for _ in range(50 // contenders):
            tries = [pool.submit(contend, folder, barrier.wait, barrier.wait) for _ in range(contenders)]
            assert [one.result() for one in tries].count(True) == 1


def contend_in_process(path: str, barrier: Any, rounds: int, wins: Any) -> None:
    for index in range(rounds):
        if contend(local_folder(path), barrier.wait, barrier.wait):
            with wins.get_lock():
                wins[index] += 1


def test_of_processes_that_come_at_once_exactly_one_wins(tmp_path: Path) -> None:
    rounds, context = 50, multiprocessing.get_context("spawn")
    barrier, wins = context.Barrier(2), context.Array("i", rounds)
    arguments = (str(tmp_path / "out"), barrier, rounds, wins)
    processes = [context.Process(target=contend_in_process, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert list(wins) == [1] * rounds


def test_a_claim_that_a_busy_disk_held_back_does_not_win_against_one_that_was_there_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its time is that of its first byte, before the disk made it wait: it looks older than it is."""
    folder = local_folder(str(tmp_path / "out"))
    sync, is_slow = os.fsync, threading.Event()

    def slow(file: int) -> None:
        if threading.current_thread() is not threading.main_thread():
            is_slow.set()
            time.sleep(0.5)
        sync(file)

    monkeypatch.setattr(os, "fsync", slow)
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(contend, folder, lambda: None, lambda: None)
        assert is_slow.wait(5)
        time.sleep(0.05)
        with Lease(folder):
            assert late.result() is False
