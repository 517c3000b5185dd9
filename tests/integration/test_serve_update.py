"""How a service passes from one configuration to another: real Ray Serve, real load, replicas without an engine."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from services import free_port

from cluster.connect import connect
from cluster.process import this_process
from cluster.terminal import scratch_folder
from conf import entry
from serve.ensemble import Ensemble
from serve.plan import ServicePlan, make_plan
from serve.router.past import REPLICA
from serve.state import Outcome, Phase, Post, ServiceState, claimed
from serve.update import Asked, apply_update

pytestmark = pytest.mark.timeout(300)
NUM_CLIENTS = 6
AT_ONCE = 4
"""Requests that a replica holds: fewer than there are clients, so that some always wait for it."""


class Slow:
    """A replica that answers with its model's name after a while; a model called broken does not start."""

    def __init__(self, name: str) -> None:
        if name == "broken":
            raise ValueError("no such weights")
        self._name = name

    async def __serve_build_asgi_app__(self) -> Any:
        name = self._name

        async def app(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "lifespan":
                for event in ("startup", "shutdown"):
                    await receive()
                    await send({"type": f"lifespan.{event}.complete"})
                return
            await asyncio.sleep(0.2)
            headers = [(b"x-pid", str(os.getpid()).encode())]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": name.encode()})

        return app


def build_slow(plan: ServicePlan, surge_percent: int) -> Any:
    import ray.serve as rayserve
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test
    deployment: Any = rayserve.deployment(
        rayserve.ingress()(Slow),  # type: ignore[arg-type]
        name=REPLICA,
        ray_actor_options={"num_cpus": 1},
        max_ongoing_requests=AT_ONCE,
        max_surge_percent=surge_percent,
        graceful_shutdown_wait_loop_s=0.2,
        max_constructor_retry_count=1,
    )
    deployment._version = plan.version
    return deployment.bind(plan.job.model.name)


class Load:
    """Clients that ask all the time, and count what they got."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._is_over = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(NUM_CLIENTS)]
        self._got: list[tuple[int, str]] = []

    def _ask(self) -> None:
        with httpx.Client(timeout=60) as client:
            while not self._is_over.is_set():
                try:
                    response = client.get(f"{self._url}/v1/models")
                    self._got.append((response.status_code, response.text))
                    if response.status_code == 503:
                        self._is_over.wait(0.05)
                except httpx.HTTPError as error:
                    self._got.append((0, repr(error)))

    def got(self) -> Counter[tuple[int, str]]:
        """What came since this was asked last."""
        got, self._got = self._got, []
        return Counter(got)

    def wait_for(self, name: str) -> None:
        """Returns once a replica of that name has answered: Ray Serve's proxy hears of new ones a moment later."""
        deadline = time.monotonic() + 60
        while (200, name) not in self._got:
            assert time.monotonic() < deadline, Counter(self._got)
            time.sleep(0.05)

    @contextmanager
    def running(self) -> Iterator[Load]:
        for thread in self._threads:
            thread.start()
        try:
            yield self
        finally:
            self.end()

    def end(self) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join(70)


def answered(url: str, model: str) -> str:
    """Which model has answered."""
    return httpx.post(f"{url}/v1/completions", json={"model": model}).text


def test_an_update_cuts_no_request(tmp_path: Path):
    def job(name: str, *words: str) -> Any:
        return entry.compose(
            "serve", "model=demo", f"model.name={name}", "access.open=true", f"deployment.port={port}", *words
        )

    def update(name: str, *words: str) -> Outcome | None:
        apply_update(service, Asked(id=name, job=job(name, *words)), post, news.append)
        assert post.state.update is not None
        assert post.state.phase is Phase.ready
        return post.state.update.outcome

    port, news = free_port(), []
    plan = make_plan(job("one"))
    state = ServiceState(process=this_process(), since="", url=plan.url, logs="", phase=Phase.ready, job=plan.job)
    post = Post(folder=tmp_path / "services", state=state)
    with (
        claimed(post.folder, "manta"),
        scratch_folder() as scratch,
        connect(plan.job.cluster, 3, Path(scratch)),
    ):
        service = Ensemble(plan, threading.Event(), news.append, build_slow)
        try:
            assert service.start()
            with Load(plan.url).running() as load:
                assert update("two") is Outcome.done
                load.wait_for("two")
                names = load.got()
                assert set(names) == {(200, "one"), (200, "two")}

                assert update("broken") is Outcome.failed
                assert "no such weights" in news[-1]
                assert set(load.got()) == {(200, "two")}
                assert state.job.model.name == "two"

                assert update("three", "engine.num_replicas=90") is Outcome.refused
                assert "engine.num_replicas=90" in news[-1]
                assert set(load.got()) <= {(200, "two")}  # that took less than a request

                assert update("four", "deployment.update=replace") is Outcome.done
                deadline = time.monotonic() + 30
                while (200, "four") not in (got := load.got()) and time.monotonic() < deadline:
                    time.sleep(0.1)
                codes = {code for code, _ in got}
                assert (200, "four") in got
                assert codes <= {200, 503}

                pid = httpx.get(f"{plan.url}/v1/models").headers["x-pid"]
                small = ["deployment.models.small.model=demo", "deployment.models.small.model.name=small"]
                assert update("four", *small[:1], "deployment.models.small.model.name=broken") is Outcome.failed
                assert "deployment.models.small does not start" in news[-1]
                assert (answered(plan.url, "broken"), answered(plan.url, "four")) == ("four", "four")

                assert update("four", *small) is Outcome.done
                asked = ["four", "small", "nobody"]
                assert [answered(plan.url, name) for name in asked] == ["four", "small", "four"]
                assert httpx.get(f"{plan.url}/ready").status_code == 200
                assert httpx.get(f"{plan.url}/_model/small/v1/models").status_code == 404

                assert update("four", small[0], "deployment.models.small.model.name=other") is Outcome.done
                assert [answered(plan.url, name) for name in ["other", "small"]] == ["other", "four"]
                assert update("four") is Outcome.done
                assert answered(plan.url, "other") == "four"
                # a model that does not change keeps its replicas
                assert httpx.get(f"{plan.url}/v1/models").headers["x-pid"] == pid
                load.got()

                service.close()
                refused = httpx.get(f"{plan.url}/v1/models")
                assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
                assert refused.json()["error"]["type"] == "service_unavailable"
                assert httpx.get(f"{plan.url}/ready").status_code == 503
                assert httpx.get(f"{plan.url}/health").status_code == 200
                load.end()
                assert {code for code, _ in load.got()} <= {200, 503}
        finally:
            service.stop()
