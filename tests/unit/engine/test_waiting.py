"""Processes of an engine that wait for each other."""

from __future__ import annotations

import threading
import time

import pytest
from vllm.distributed.device_communicators import shm_broadcast

from serve.engine.vllm import waiting


def test_a_reader_of_vllms_queue_naps_until_something_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shm_broadcast, "sched_yield", shm_broadcast.sched_yield)  # back again afterwards
    naps: list[float] = []
    plain = waiting.nap

    def nap() -> None:
        began = time.monotonic()
        plain()
        naps.append(time.monotonic() - began)

    monkeypatch.setattr(waiting, "nap", nap)
    waiting.take_naps()
    writer = shm_broadcast.MessageQueue(1, 1)
    reader = shm_broadcast.MessageQueue.create_from_handle(writer.export_handle(), 0)
    later = threading.Timer(0.05, writer.enqueue, ["read"])
    later.start()
    assert reader.dequeue(timeout=20) == "read"
    later.join()
    assert naps, "vLLM waits by another name now"
    assert min(naps) >= waiting.NAP_S
