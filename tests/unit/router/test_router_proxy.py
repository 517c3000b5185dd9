"""Which form the proxy has, and the flags of the direct one."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray.serve as rayserve
from ray.serve._private import constants

from conf.errors import UserError
from conf.schema.cluster import ClusterSpec
from conf.schema.serve import DeploymentSpec, ProxyForm, ServeJob
from serve.router.proxy import MAX_SCRATCH_CHARS, buffer_bytes, decide_form, own_app, set_flags

SHORT, LONG = Path("/tmp/manta-12345678"), Path("/tmp/" + "x" * MAX_SCRATCH_CHARS)


def job(form: str = "auto", address: str | None = None) -> ServeJob:
    return ServeJob(deployment=DeploymentSpec(proxy=ProxyForm(form)), cluster=ClusterSpec(address=address))


@pytest.mark.parametrize(
    ("asked", "address", "scratch", "form"),
    [
        ("auto", None, SHORT, ProxyForm.direct),
        ("auto", None, LONG, ProxyForm.plain),
        ("auto", "10.0.0.1:6379", SHORT, ProxyForm.plain),
        ("plain", None, SHORT, ProxyForm.plain),
        ("direct", None, SHORT, ProxyForm.direct),
    ],
)
def test_it_is_direct_where_it_can_be(asked: str, address: str | None, scratch: Path, form: ProxyForm):
    assert decide_form(job(asked, address), scratch) is form


@pytest.mark.parametrize(("address", "scratch"), [("10.0.0.1:6379", SHORT), (None, LONG)])
def test_what_direct_lacks_is_said(address: str | None, scratch: Path):
    with pytest.raises(UserError, match=r"deployment\.proxy=direct needs"):
        decide_form(job("direct", address), scratch)


def test_what_the_user_has_set_stays(tmp_path: Path):
    environment = {"RAY_SERVE_HAPROXY_NBTHREAD": "9"}
    set_flags(job(), 4096, tmp_path, environment)
    assert environment["RAY_SERVE_HAPROXY_NBTHREAD"] == "9"
    assert environment["RAY_SERVE_ENABLE_HA_PROXY"] == "1"


def test_the_program_that_is_named_becomes_haproxy(tmp_path: Path):
    environment: dict[str, str] = {}
    set_flags(job(), 4096, tmp_path, environment)
    command = [environment["RAY_SERVE_HAPROXY_BINARY_PATH"], "-v"]
    assert "HAProxy version" in subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout


@pytest.mark.parametrize(
    ("context", "size"),
    [(1, 1 << 17), (8192, 1 << 17), (8193, 1 << 18), (32768, 1 << 19), (131072, 1 << 20), (10**7, 1 << 20)],
)
def test_buffers_hold_a_prompt_as_long_as_the_context_up_to_a_bound(context: int, size: int, tmp_path: Path):
    assert buffer_bytes(context) == size
    environment: dict[str, str] = {}
    set_flags(job(), context, tmp_path, environment)
    assert environment["RAY_SERVE_HAPROXY_INGRESS_REQUEST_ROUTER_BUFSIZE"] == str(size)


def test_ray_knows_every_flag(tmp_path: Path):
    from ray.serve._private import constants, haproxy

    environment: dict[str, str] = {}
    set_flags(job(), 4096, tmp_path, environment)
    assert all(hasattr(constants, name) or hasattr(haproxy, name) for name in environment)


@pytest.mark.parametrize(
    "is_separate, instance, app, room",
    [
        (False, SimpleNamespace(app="app", room="room"), "app", "room"),
        (True, SimpleNamespace(app="app", room="room"), None, None),
        (False, SimpleNamespace(app="app"), "app", None),
        (False, None, None, None),
    ],
    ids=["one loop", "a thread of its own", "another deployment", "not initialized"],
)
def test_a_replica_s_own_app_is_called_where_it_is_in_the_loop_that_listens(
    monkeypatch: pytest.MonkeyPatch, is_separate: bool, instance: object, app: str | None, room: str | None
):
    monkeypatch.setattr(constants, "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD", is_separate)
    monkeypatch.setattr(rayserve, "get_replica_context", lambda: SimpleNamespace(servable_object=instance))
    assert (own_app(has_room=False), own_app(has_room=True)) == (app, room)
