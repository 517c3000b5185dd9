"""Calls of replicas past Ray Serve's queue, with a stand-in for Ray: what runs where, what is kept, what is raised."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import ray.serve as rayserve

from serve.middleware.past import MAX_ASKED, Asker
from serve.router import past
from serve.router.past import Running, call


class Replica:
    """A deployment's instance, whose app has a loop in a thread of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self.ran_in: list[threading.Thread] = []

    async def twice(self, number: int) -> int:
        self.ran_in.append(threading.current_thread())
        await asyncio.sleep(0.02)
        if number < 0:
            raise ValueError("below nought")
        return 2 * number

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


@pytest.fixture
async def replica(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Replica]:
    made = Replica()

    async def ray_call(function: Any, *arguments: Any) -> Any:
        """Ray's: a plain function, in a thread without a loop."""
        return await asyncio.to_thread(function, None, *arguments)

    def get_actor(name: str, namespace: str) -> Any:
        if name != "SERVE_REPLICA::a":
            raise ValueError(name)
        return SimpleNamespace(**{"__ray_call__": SimpleNamespace(remote=ray_call)})

    monkeypatch.setattr(ray, "get_actor", get_actor)
    monkeypatch.setattr(rayserve, "get_replica_context", lambda: SimpleNamespace(servable_object=made))
    monkeypatch.setattr(past, "KEPT_S", 0.05)
    yield made
    made.close()


async def test_a_method_runs_in_the_loop_of_the_app_and_its_answers_come_to_who_asked(replica: Replica):
    answers = await asyncio.gather(*(call("SERVE_REPLICA::a", "twice", number) for number in range(5)))
    assert answers == [0, 2, 4, 6, 8]
    assert set(replica.ran_in) == {replica.thread}
    assert past._begun == {}


async def test_what_fails_is_raised(replica: Replica):
    with pytest.raises(ValueError, match="below nought"):
        await call("SERVE_REPLICA::a", "twice", -1)
    with pytest.raises(ValueError, match="gone"):
        await call("gone", "twice", 1)
    assert past._begun == {}


async def test_what_nobody_fetches_is_forgotten(replica: Replica):
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(call("SERVE_REPLICA::a", "twice", 1), 0.01)
    assert len(past._begun) == 1
    async with asyncio.timeout(5):
        while past._begun:
            await asyncio.sleep(0.01)


class Serve:
    """Tells what it is made to tell."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.told: dict[str, Any] = {}
        monkeypatch.setattr(past, "watch_replicas", lambda name, tell, app: self.told.update({app: tell}) or tell)
        monkeypatch.setattr(past, "watch_addresses", lambda tell: self.told.update({"": tell}) or tell)
        monkeypatch.setattr(past, "KNOWN_S", 0.05)

    def run(self, app: str, **actors: str) -> None:
        replicas = [
            SimpleNamespace(replica_id=SimpleNamespace(unique_id=name), actor_name=at) for name, at in actors.items()
        ]
        self.told[app](SimpleNamespace(running_replicas=replicas))


async def test_replicas_are_known_as_they_come_and_go_and_are_waited_for_once(monkeypatch: pytest.MonkeyPatch):
    serve, running = Serve(monkeypatch), Running()
    first = asyncio.create_task(running.actors("manta"))
    await asyncio.sleep(0)
    serve.run("manta", a="actor-a")
    assert await first == {"a": "actor-a"}
    serve.run("manta", a="actor-a", b="actor-b")
    assert await running.actors("manta") == {"a": "actor-a", "b": "actor-b"}
    assert await running.actors("manta.other") == {}  # nothing was told in time
    began = asyncio.get_running_loop().time()
    assert await running.actors("manta.other") == {}
    assert asyncio.get_running_loop().time() - began < 0.04


async def test_whether_requests_reach_replicas_is_what_ray_serve_says_of_the_address(monkeypatch: pytest.MonkeyPatch):
    serve, running = Serve(monkeypatch), Running()
    assert not await running.are_reached("manta")
    for deployments, are_reached in (({"manta": "gate"}, False), ({"manta": "replica"}, True), ({}, False)):
        serve.told[""](deployments)
        assert await running.are_reached("manta") == are_reached


@pytest.mark.parametrize(
    "address, actor, said",
    [("replica", "SERVE_REPLICA::a", 1), ("replica", "gone", 0), ("gate", "SERVE_REPLICA::a", 0)],
)
async def test_the_proxy_asks_a_replica_where_requests_reach_it_and_it_lives(
    replica: Replica, monkeypatch: pytest.MonkeyPatch, address: str, actor: str, said: int
):
    serve, ask = Serve(monkeypatch), Asker("manta")

    async def answer(scope: dict[str, Any]) -> list[dict[str, Any]]:
        return [scope]

    replica.answer = answer  # type: ignore[attr-defined]
    asking = asyncio.create_task(ask({"type": "http", "method": "GET", "path": "/metrics", "app": object()}))
    await asyncio.sleep(0.01)
    serve.told[""]({"manta": address})
    await asyncio.sleep(0.01)
    if "manta" in serve.told:
        serve.run("manta", a=actor)
    assert await asking == [{"type": "http", "method": "GET", "path": "/metrics"}] * said


async def test_the_proxy_asks_for_so_many_at_a_time_and_others_wait_in_the_queue(
    replica: Replica, monkeypatch: pytest.MonkeyPatch
):
    async def answer(scope: dict[str, Any]) -> list[dict[str, Any]]:
        await asyncio.sleep(0.02)
        return [scope]

    replica.answer = answer  # type: ignore[attr-defined]
    serve, ask = Serve(monkeypatch), Asker("manta")
    for name in ("KEPT_S", "KNOWN_S"):  # so many threads may take longer than the others' 50 ms
        monkeypatch.setattr(past, name, 5.0)
    for round_of in range(2):
        asking = [asyncio.create_task(ask({"type": "http"})) for _ in range(MAX_ASKED + 3)]
        await asyncio.sleep(0)
        if not round_of:
            serve.told[""]({"manta": "replica"})
            await asyncio.sleep(0.01)
            serve.run("manta", a="SERVE_REPLICA::a")
        answers = await asyncio.gather(*asking)
        assert answers == [[{"type": "http"}]] * MAX_ASKED + [[]] * 3
