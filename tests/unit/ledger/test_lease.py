"""Leases: of two drivers on one folder one works, and one that is dead keeps nobody out."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs as pafs

from conf.errors import UserError
from pipelines.ledger import lease as lease_module
from pipelines.ledger.folder import Folder
from pipelines.ledger.lease import EXPIRE_S, Holder, Lease, lease_file, live_holder
from pipelines.ledger.outcome import encode
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


def files(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "out" / "_manta" / "leases").glob("*"))


def refusal(folder: Folder) -> str:
    with pytest.raises(UserError) as caught, Lease(folder):
        pytest.fail("a second driver works")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def me() -> Holder:
    """The holder that this process is."""
    return Lease(local_folder("/nowhere"))._holder


def put(folder: Folder, tmp_path: Path, holder: Holder, age_s: float = 0.0, beat_age_s: float | None = None) -> Path:
    """Leaves a claim behind, last written so long ago."""
    lease_file(folder, holder.run).write_bytes(encode(asdict(holder)))
    path = tmp_path / "out" / "_manta" / "leases" / f"{holder.run}.json"
    aged(path, age_s)
    if beat_age_s is not None:
        path.with_suffix(".beat").touch()
        aged(path.with_suffix(".beat"), beat_age_s)
    return path


def aged(path: Path, age_s: float) -> None:
    os.utime(path, (time.time() - age_s,) * 2)


def elsewhere(**changes: Any) -> Holder:
    """A holder on another machine, of whose process nothing is known."""
    return replace(me(), run="0" * 8, host="far", boot="another boot", pid=4711, **changes)


def test_a_free_folder_is_taken_and_given_back_without_a_trace(folder: Folder, tmp_path: Path) -> None:
    with Lease(folder) as lease:
        assert f"{lease.run}.json" in files(tmp_path)
        assert lease_file(folder, lease.run).exists()
    assert files(tmp_path) == []
    with Lease(folder):
        pass


def test_a_second_driver_is_refused_and_told_who_holds_the_folder(folder: Folder, tmp_path: Path) -> None:
    with Lease(folder):
        before = files(tmp_path)
        message = refusal(folder)
        assert f"process {os.getpid()} on {me().host}" in message
        assert message.startswith("output.path=")
        assert files(tmp_path) == before


def test_a_lease_is_given_back_when_the_job_fails(folder: Folder, tmp_path: Path) -> None:
    with pytest.raises(KeyError), Lease(folder):
        raise KeyError
    assert files(tmp_path) == []


def test_a_driver_on_another_machine_is_believed_to_live(folder: Folder, tmp_path: Path) -> None:
    put(folder, tmp_path, elsewhere(), age_s=EXPIRE_S / 2)
    assert "process 4711 on far" in refusal(folder)


@pytest.mark.parametrize("boot", ["", "another boot"])
def test_a_process_that_cannot_be_seen_from_here_is_not_gone(boot: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where neither machine says what it is, process numbers of one are not those of the other."""
    if not boot:
        monkeypatch.setattr(lease_module, "_boot", lambda: "")
    assert not replace(me(), boot=boot, pid=2**22 + 1).is_gone


def test_a_driver_whose_heartbeat_stands_still_is_dead(folder: Folder, tmp_path: Path) -> None:
    path = put(folder, tmp_path, elsewhere(), age_s=999, beat_age_s=EXPIRE_S + 1)
    with Lease(folder) as lease:
        assert not path.exists()
        assert not path.with_suffix(".beat").exists()
        assert [name for name in files(tmp_path) if name.endswith("json")] == [f"{lease.run}.json"]


def test_an_old_claim_with_a_young_heartbeat_lives(folder: Folder, tmp_path: Path) -> None:
    path = put(folder, tmp_path, elsewhere(), age_s=999, beat_age_s=EXPIRE_S - 5)
    refusal(folder)
    assert path.exists()


def test_a_dead_process_of_this_machine_is_taken_over_at_once(folder: Folder, tmp_path: Path) -> None:
    child = subprocess.Popen(["sleep", "60"])
    holder = replace(me(), run="0" * 8, pid=child.pid, started=lease_module._process_start(child.pid) or 0)
    put(folder, tmp_path, holder)
    assert f"process {child.pid}" in refusal(folder)
    child.kill()
    wait_for(lambda: holder.is_gone)  # a zombie is gone too
    with Lease(folder):
        pass
    child.wait()


def test_a_process_number_used_again_is_another_process(folder: Folder, tmp_path: Path) -> None:
    holder = replace(me(), run="0" * 8, started=me().started - 1)
    put(folder, tmp_path, holder)
    with Lease(folder):
        assert not lease_file(folder, holder.run).exists()


def test_a_killed_driver_leaves_a_claim_that_keeps_nobody_out(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pipelines.ledger.folder import Folder; from pipelines.ledger.lease import Lease;"
        "from pipelines.storage import locate; root = locate(sys.argv[1], 'x');"
        "Lease(Folder(root=root, suffix='parquet')).__enter__(); print('held', flush=True); time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "out")], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    folder = local_folder(str(tmp_path / "out"))
    assert f"process {child.pid}" in refusal(folder)
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    with Lease(folder):
        pass
    assert files(tmp_path) == []


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"5", b'{"run": "x"}'])
def test_a_claim_that_cannot_be_read_keeps_others_out_until_it_is_old(
    folder: Folder, tmp_path: Path, data: bytes
) -> None:
    path = put(folder, tmp_path, elsewhere())
    path.write_bytes(data)
    aged(path, 1)
    assert "another job is writing here" in refusal(folder)
    aged(path, EXPIRE_S + 1)
    with Lease(folder):
        assert not path.exists()


def test_files_that_are_no_claims_are_left_alone(folder: Folder, tmp_path: Path) -> None:
    place = folder.leases.join("notes.txt")
    place.write_bytes(b"mine")
    with Lease(folder):
        pass
    assert files(tmp_path) == ["notes.txt"]


def wait_for(holds: Callable[[], bool]) -> None:
    for _ in range(500):
        if holds():
            return
        time.sleep(0.01)
    pytest.fail("it does not come")


def test_the_heartbeat_is_written_again_and_again(
    folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_module, "RENEW_S", 0.02)
    with Lease(folder) as lease:
        beat = tmp_path / "out" / "_manta" / "leases" / f"{lease.run}.beat"
        wait_for(beat.exists)
        aged(beat, 500)
        wait_for(lambda: beat.stat().st_mtime > time.time() - 100)
    assert files(tmp_path) == []


def test_a_driver_notices_that_another_took_over_and_is_told_once(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_module, "RENEW_S", 0.02)
    lost: list[int] = []
    with Lease(folder, lambda: lost.append(1)) as lease:
        time.sleep(0.1)
        assert lost == []
        lease_file(folder, lease.run).delete()
        wait_for(lambda: bool(lost))
        time.sleep(0.1)
    assert lost == [1]


def test_a_driver_that_stood_still_loses_the_folder_to_the_next_and_notices(
    folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_module, "RENEW_S", 0.5)
    lost = threading.Event()
    with Lease(folder, lost.set) as first:
        aged(tmp_path / "out" / "_manta" / "leases" / f"{first.run}.json", EXPIRE_S + 1)
        with Lease(folder) as second:
            assert lost.wait(5)
            assert [name for name in files(tmp_path) if name.endswith("json")] == [f"{second.run}.json"]


def test_a_disk_error_does_not_end_the_heartbeat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "RENEW_S", 0.02)
    folder = local_folder(str(tmp_path / "out"))
    write, failures = Location.write_bytes, [0]

    def fail_thrice(self: Location, data: bytes) -> None:
        if self.path.endswith("beat") and failures[0] < 3:
            failures[0] += 1
            raise OSError(28, "full")
        write(self, data)

    monkeypatch.setattr(Location, "write_bytes", fail_thrice)
    with Lease(folder) as lease:
        wait_for((tmp_path / "out" / "_manta" / "leases" / f"{lease.run}.beat").exists)
    assert failures == [3]


def test_who_holds_a_folder_is_seen_from_outside(folder: Folder, tmp_path: Path) -> None:
    assert live_holder(folder) is None
    with Lease(folder) as lease:
        assert live_holder(folder) == lease._holder
    assert live_holder(folder) is None
    put(folder, tmp_path, elsewhere(), age_s=999, beat_age_s=1)
    assert live_holder(folder) == elsewhere(since=live_since(folder))
    aged(tmp_path / "out" / "_manta" / "leases" / "00000000.beat", EXPIRE_S + 1)
    assert live_holder(folder) is None


def live_since(folder: Folder) -> float:
    holder = live_holder(folder)
    assert holder is not None
    return holder.since
