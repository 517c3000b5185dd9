from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.own_file import MAX_BYTES, write_own
from cluster.process import Process, process_of, this_process
from conf import entry
from conf.errors import UserError
from serve.service_verb import status, stop
from serve.state import (
    Phase,
    ServiceState,
    claimed,
    read_state,
    remove_state,
    services_folder,
    state_names,
    write_state,
)

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MANTA_HOME", str(tmp_path))
    found = services_folder(os.environ)
    with claimed(found, "x"):
        pass
    return found


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process that ends when it is told to."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def state_of(name: str, process: Process, phase: Phase = Phase.ready) -> ServiceState:
    job = entry.compose("serve", "model=demo", f"deployment.name={name}", "deployment.drain_s=0")
    return ServiceState(process=process, since="now", url="http://127.0.0.1:9", logs="logs", phase=phase, job=job)


def test_a_state_comes_back_as_it_was_and_only_its_owner_reads_it(folder: Path):
    state = state_of("a", this_process())
    write_state(folder, state)
    assert read_state(folder, "a") == state
    assert state_names(folder) == ["a"]
    assert stat.S_IMODE((folder / "a.state.json").stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    remove_state(folder, "a")
    assert (read_state(folder, "a"), state_names(folder)) == (None, [])


def test_the_folder_is_the_user_s(monkeypatch: pytest.MonkeyPatch):
    assert services_folder({"MANTA_HOME": "/m"}) == Path("/m/services")
    assert services_folder({"XDG_STATE_HOME": "/s"}) == Path("/s/manta/services")
    monkeypatch.setenv("HOME", "/h")
    assert services_folder({}) == Path("/h/.local/state/manta/services")


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b", ".a", "a\n", "a\0", "x" * 64])
def test_a_name_that_is_none_names_no_file(name: str, folder: Path):
    with pytest.raises(UserError, match=r"deployment\.name"):
        read_state(folder, name)
    with pytest.raises(UserError, match=r"deployment\.name"), claimed(folder, name):
        pass


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b"\xff\xfe",
        b"[" * 100_000,
        b"x" * (MAX_BYTES + 1),
        b'{"process": {"host": "", "boot_id": "", "pid": -1, "started_ticks": 0}}',
    ],
)
def test_a_broken_state_is_named_and_signals_nobody(data: bytes, folder: Path):
    write_own(folder / "a.state.json", data)
    with pytest.raises(UserError, match=r"a\.state\.json.*remove it"):
        stop(["a"])


@pytest.mark.parametrize("values", [{"pid": 0}, {"pid": -1}])
def test_a_state_whose_process_is_a_group_is_broken(values: dict[str, int], folder: Path):
    write_state(folder, state_of("a", replace(this_process(), **values)))
    with pytest.raises(UserError, match="remove it"):
        read_state(folder, "a")


def test_a_state_under_another_name_is_broken(folder: Path):
    write_state(folder, state_of("a", this_process()))
    (folder / "a.state.json").rename(folder / "b.state.json")
    with pytest.raises(UserError, match="not the state of a service 'b'"):
        read_state(folder, "b")


def test_a_state_that_others_may_write_or_that_is_no_file_is_refused(folder: Path):
    write_state(folder, state_of("a", this_process()))
    (folder / "a.state.json").chmod(0o666)
    (folder / "b.state.json").symlink_to(folder / "a.state.json")
    os.mkfifo(folder / "c.state.json")
    for name in ("a", "b", "c"):
        with pytest.raises(UserError, match=rf"{name}\.state\.json"):
            read_state(folder, name)
    folder.chmod(0o777)
    with pytest.raises(UserError, match="nobody else may write"), claimed(folder, "d"):
        pass


def test_a_name_is_claimed_once(folder: Path):
    with claimed(folder, "a"):
        with pytest.raises(UserError, match=r"deployment\.name=a: .*manta serve stop a"), claimed(folder, "a"):
            pass
        with claimed(folder, "b"):
            pass
    with claimed(folder, "a"):
        pass


@pytest.mark.parametrize("values", [{"started_ticks": 1}, {"boot_id": "another"}, {"host": "another"}])
def test_a_process_with_the_number_of_another_is_not_that_one(
    values: dict[str, object], sleeper: subprocess.Popen[bytes]
):
    process = process_of(sleeper.pid)
    assert process.is_alive
    other = replace(process, **values)
    assert not other.is_alive
    assert not other.send(signal.SIGKILL)
    assert process.is_alive


def test_the_end_of_a_process_is_seen(sleeper: subprocess.Popen[bytes]):
    process = process_of(sleeper.pid)
    assert not process.wait(0.01)
    assert process.send(signal.SIGTERM)
    assert process.wait(20)
    assert not process.is_alive  # though nobody has asked for its exit code yet
    assert not process.send(signal.SIGTERM)


def test_stop_ends_the_recorded_process(folder: Path, sleeper: subprocess.Popen[bytes], capsys: Capture):
    write_state(folder, state_of("a", process_of(sleeper.pid)))
    assert stop([]) == 0
    assert "a has stopped" in capsys.readouterr().err
    assert sleeper.wait(20) == -signal.SIGTERM


def test_stop_of_a_service_that_was_killed_forgets_it(folder: Path, sleeper: subprocess.Popen[bytes], capsys: Capture):
    write_state(folder, state_of("a", replace(process_of(sleeper.pid), started_ticks=1)))
    assert stop(["a"]) == 1
    assert "not running any more" in capsys.readouterr().err
    assert sleeper.poll() is None
    assert state_names(folder) == []
    assert stop(["a"]) == 1
    assert "a is not running" in capsys.readouterr().err


def test_stop_without_a_name_takes_the_one_that_runs(folder: Path, sleeper: subprocess.Popen[bytes]):
    assert stop([]) == 1
    write_state(folder, state_of("dead", replace(process_of(sleeper.pid), started_ticks=1)))
    write_state(folder, state_of("a", this_process()))
    write_state(folder, state_of("b", this_process()))
    with pytest.raises(UserError, match="there are a, b"):
        stop([])
    write_state(folder, state_of("c", replace(this_process(), host="elsewhere")))
    with pytest.raises(UserError, match="elsewhere"):
        stop(["c"])


@pytest.mark.parametrize("words", [["a", "b"], ["--all"], ["deployment.name=x"]])
def test_other_words_are_the_user_s_mistake(words: list[str], folder: Path):
    for verb in (status, stop):
        with pytest.raises(UserError, match="takes the name of one service"):
            verb(words)


def test_status_says_what_runs_what_died_and_what_failed(folder: Path, capsys: Capture):
    assert status([]) == 1
    assert "no service runs" in capsys.readouterr().out
    write_state(folder, state_of("dead", replace(this_process(), boot_id="before")))
    write_own(folder / "odd.state.json", b"?")
    failed = state_of("failed", replace(this_process(), started_ticks=1), Phase.failed)
    failed.message = "no memory"
    write_state(folder, failed)
    assert status([]) == 1
    out = capsys.readouterr().out
    assert "gone" in out
    assert "odd.state.json" in out
    assert status(["dead"]) == 1
    assert "ended without being stopped" in capsys.readouterr().out
    assert status(["failed"]) == 1
    assert "failed: no memory" in capsys.readouterr().out
    assert status(["deed"]) == 1
    assert "did you mean 'dead'" in capsys.readouterr().out
    write_state(folder, state_of("here", this_process()))
    assert status([]) == 0
    assert status(["here"]) == 1  # nobody answers at its address
    assert "/ready: not now" in capsys.readouterr().out
