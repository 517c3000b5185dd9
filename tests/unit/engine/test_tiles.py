from __future__ import annotations

import subprocess
import sys

import pytest
from conftest import ROOT

from serve.engine.dtype import cpu_flags
from serve.engine.vllm import tiles

LEAVE = """
import ctypes, sys
import serve.engine.vllm.worker
given = ctypes.c_ulong(0)
assert ctypes.CDLL(None).syscall(158, 0x1022, ctypes.byref(given)) == 0  # ARCH_GET_XCOMP_PERM
print(bool(given.value & 1 << 18))
"""


@pytest.mark.skipif("amx_tile" not in cpu_flags(), reason="this CPU has no tile registers")
def test_a_worker_may_use_the_tile_registers():
    done = subprocess.run([sys.executable, "-c", LEAVE], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout == "True\n", done.stderr


@pytest.mark.parametrize("machine,flags", [("aarch64", {"amx_tile"}), ("x86_64", {"avx512f"})])
def test_nothing_is_asked_where_there_are_none(monkeypatch: pytest.MonkeyPatch, machine: str, flags: set[str]):
    monkeypatch.setattr(tiles.platform, "machine", lambda: machine)
    monkeypatch.setattr(tiles, "cpu_flags", lambda: frozenset(flags))
    assert tiles.ask() is False
