from __future__ import annotations

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from small_service import NOW, Clock, make_secret

from conf import cli
from conf.completion import candidates
from conf.errors import UserError
from serve.keyring import KeyRing, environment_keys
from serve.keys import Limits, Priority, keys_path, make_key, read_keys, revoke_key, write_keys


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MANTA_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "keys.json"


def manta(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = cli.main(["keys", *words])
    return (code, *capsys.readouterr())


def test_a_key_is_shown_once_and_its_secret_is_stored_nowhere(path: Path, capsys: pytest.CaptureFixture[str]):
    code, out, err = manta(capsys, "add", "team", "--requests-per-min", "60", "--priority", "batch")
    secret = out.strip()
    assert code == 0
    assert secret.startswith("manta-")
    assert len(secret.split("-", 2)[2]) == 43  # 32 bytes
    assert secret not in err
    assert secret.split("-", 2)[2] not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in path.parent.iterdir() if entry.suffix not in (".lock",)] == ["keys.json"]
    code, out, _ = manta(capsys, "list")
    assert (code, "team" in out, "batch" in out, secret in out) == (0, True, True, False)
    key = KeyRing(path).find(secret.encode())
    assert key is not None
    assert (key.name, key.priority, key.limits) == ("team", Priority.batch, Limits(requests_per_min=60))


@pytest.mark.parametrize("by", ["name", "id"])
def test_a_key_is_revoked_by_name_or_id(by: str, path: Path, capsys: pytest.CaptureFixture[str]):
    secret, other = make_secret(path, "one"), make_secret(path, "two")
    word = "one" if by == "name" else secret.split("-")[1]
    code, out, _ = manta(capsys, "revoke", word)
    assert (code, out.startswith("revoked one")) == (0, True)
    ring = KeyRing(path)
    assert ring.find(secret.encode()) is None
    assert ring.find(other.encode()) is not None


@pytest.mark.parametrize(
    "words, said",
    [
        (["add", "one"], "there is a key 'one' already"),
        (["add", "a/b"], "a key's name is a word"),
        (["add", ""], "a key's name is a word"),
        (["add", "n\nn"], "a key's name is a word"),
        (["revoke", "on"], "did you mean 'one'?"),
        (["add", "two", "--max-concurrent", "0"], "from 1 to"),
        (["add", "two", "--expires-in-days", "9999999"], "from 1 to"),
        (["add", "two", "--priority", "first"], "invalid choice"),
        ([], "add|list|revoke"),
    ],
)
def test_a_mistake_is_said_and_changes_nothing(
    words: list[str], said: str, path: Path, capsys: pytest.CaptureFixture[str]
):
    make_secret(path, "one")
    before = path.read_bytes()
    code, out, err = manta(capsys, *words)
    assert (code, out) == (2, "")
    assert said in err
    assert path.read_bytes() == before


@pytest.mark.parametrize("words", [["--help"], ["add", "-h"], ["list", "--help"]])
def test_there_is_help(words: list[str], path: Path, capsys: pytest.CaptureFixture[str]):
    code, out, err = manta(capsys, *words)
    assert (code, err) == (0, "")
    assert "manta keys" in out


def test_the_shell_completes_what_can_be_done():
    assert candidates("manta keys ") == ["add ", "list ", "revoke "]
    assert candidates("manta keys re") == ["revoke "]
    assert candidates("manta keys revoke ") == []


def test_where_keys_are():
    assert keys_path("/a/b", {"MANTA_HOME": "/home"}) == Path("/a/b")
    assert keys_path(None, {"MANTA_HOME": "/m", "XDG_CONFIG_HOME": "/x"}) == Path("/m/keys.json")
    assert keys_path(None, {"XDG_CONFIG_HOME": "/x"}) == Path("/x/manta/keys.json")
    assert keys_path(None, {}) == Path.home() / ".config/manta/keys.json"


def test_commands_at_the_same_time_lose_no_key(path: Path):
    names = [f"key-{number}" for number in range(24)]
    with ThreadPoolExecutor(8) as pool:
        secrets = list(pool.map(lambda name: make_secret(path, name), names))
    ring = KeyRing(path)
    assert [ring.find(secret.encode()).name for secret in secrets] == names  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"keys": [{"id": 1}]}', '{"keys": [{"id": "a", "name": "a"}]}', "\ufeff{}", '{"keys": 3}']
)
def test_a_file_that_holds_something_else_is_the_users_mistake(text: str, tmp_path: Path):
    path = tmp_path / "keys.json"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(UserError, match=r"keys\.json: no key file"):
        read_keys(path)


def test_a_limit_of_nothing_in_the_file_is_the_users_mistake(tmp_path: Path):
    path = tmp_path / "keys.json"
    make_secret(path, "one", max_concurrent=7)
    path.write_text(path.read_text().replace("7", "0"))
    with pytest.raises(UserError, match="max_concurrent must be >= 1"):
        read_keys(path)


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_can_write_to_is_refused(mode: int, tmp_path: Path):
    path = tmp_path / "keys.json"
    make_secret(path, "one")
    path.chmod(mode)
    with pytest.raises(UserError, match="others may write"):
        KeyRing(path)


def test_a_disk_that_is_full_leaves_the_former_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "keys.json"
    secret = make_secret(path, "one")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left"):
        make_secret(path, "two")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["keys.json", "keys.json.lock"]
    assert KeyRing(path).find(secret.encode()) is not None


def test_a_running_service_sees_new_and_revoked_keys_within_a_second(tmp_path: Path):
    path, clock = tmp_path / "keys.json", Clock()
    ring = KeyRing(path, clock=clock)
    secret = make_secret(path, "one").encode()
    assert ring.find(secret) is None  # it looked less than a second ago
    clock.now_s += 1
    assert ring.find(secret) is not None
    revoke_key(path, "one")
    clock.now_s += 0.99
    assert ring.find(secret) is not None
    clock.now_s += 0.01
    assert ring.find(secret) is None


def test_a_file_that_goes_takes_its_keys_and_one_that_breaks_does_not(tmp_path: Path):
    path, clock = tmp_path / "keys.json", Clock()
    secret = make_secret(path, "one").encode()
    ring = KeyRing(path, clock=clock)
    path.write_text("{")
    clock.now_s += 1
    assert ring.find(secret) is not None
    path.unlink()
    clock.now_s += 1
    assert ring.find(secret) is None


def test_an_expired_key_is_refused(tmp_path: Path):
    path = tmp_path / "keys.json"
    secret = make_secret(path, "one", expires=NOW + timedelta(days=1)).encode()
    assert KeyRing(path, now=lambda: NOW + timedelta(hours=23)).find(secret) is not None
    assert KeyRing(path, now=lambda: NOW + timedelta(hours=24)).find(secret) is None


def test_keys_of_the_environment_have_no_limits_and_travel_hashed(tmp_path: Path):
    keys = environment_keys({"MANTA_API_KEYS": "first-secret, sk-other ,,"}, NOW)
    assert [key.limits for key in keys] == [Limits(), Limits()]
    assert "secret" not in repr(keys)
    ring = KeyRing(tmp_path / "none.json", keys)
    ring.check()
    assert [ring.find(word) and ring.find(word).name for word in (b"first-secret", b"sk-other", b"", b"x")] == [  # type: ignore[union-attr]
        "environment-1",
        "environment-2",
        None,
        None,
    ]


def test_a_service_that_nobody_could_enter_says_how_to_make_a_key(tmp_path: Path):
    with pytest.raises(UserError, match="manta keys add NAME makes one"):
        KeyRing(tmp_path / "none.json").check()


@pytest.mark.parametrize("change", ["id", "secret", "longer", "shorter", "case", "bytes"])
def test_a_key_that_is_nearly_right_is_wrong(change: str, tmp_path: Path):
    path = tmp_path / "keys.json"
    secret, other = make_secret(path, "one").encode(), make_secret(path, "two").encode()
    changed = {
        "id": b"-".join([b"manta", other.split(b"-")[1], secret.split(b"-", 2)[2]]),
        "secret": secret[:-1] + (b"A" if secret[-1:] != b"A" else b"B"),
        "longer": secret + b"A",
        "shorter": secret[:-1],
        "case": secret.replace(b"manta", b"Manta"),
        "bytes": secret + b"\xff",
    }[change]
    assert KeyRing(path).find(changed) is None


def test_what_is_written_is_what_is_read(tmp_path: Path):
    path = tmp_path / "keys.json"
    limits = Limits(requests_per_min=1, tokens_per_min=2, max_concurrent=3)
    keys = tuple(make_key(name, limits, Priority.batch, NOW, NOW)[1] for name in ("a", "b"))
    write_keys(path, keys)
    assert read_keys(path) == keys
