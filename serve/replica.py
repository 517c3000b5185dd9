"""The deployment of Ray Serve: a replica is an engine with its app (vLLM's own), which answers without a second hop."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from cluster.replica_port import listen_on_this_node
from conf.schema.engine import Device, EngineKind
from conf.schema.serve import ServeJob
from conf.schema.task import Task
from serve.autoscale.watch import Report
from serve.batches.document import PATHS
from serve.catalogue import read_now
from serve.engine.errors import EngineDead
from serve.engine.speed import Speed
from serve.engine.vllm.api import VllmApi, start_api
from serve.middleware.answer import ASGIApp, Message
from serve.middleware.dispatch import unprefixed
from serve.middleware.document import complete_document
from serve.middleware.leaving import Leaving
from serve.middleware.listing import Listing
from serve.middleware.load import Load
from serve.middleware.lost import Lost
from serve.middleware.mistake import shape_errors
from serve.middleware.observe import Observe
from serve.middleware.past import answer_of
from serve.middleware.record import RequestLog
from serve.middleware.room import Room
from serve.middleware.routes import EXPOSED, Routes
from serve.middleware.scrape import Scrape
from serve.middleware.stack import Layer, wrapped
from serve.middleware.straight import straighten
from serve.middleware.tally import Tally
from serve.notice import Death, Size, read_notice, write_notice
from serve.openai.api import EdgeApi, start_edge_api
from serve.router.past import Running
from serve.router.proxy import watch_own
from serve.rpc.call import Calls
from serve.telemetry import Named, app_name, engine_families, gather, replica_name, request_log_path
from serve.vitals import Vitals

Api = VllmApi | EdgeApi
TELL_S = 1.0
"""Within this time a replica whose engine is dead has told why, or ends without."""


class Replica(Calls):
    """Holds one engine. Ray Serve calls what is here; requests go to the app past it, those by gRPC through `Calls`."""

    def __init__(self, job: ServeJob, device: Device, share: int, layers: Sequence[Layer]) -> None:
        """Args.

        job: the service; its paths are absolute.
        device: cpu or cuda, decided.
        share: engines that share a machine's cores.
        layers: the middleware; see `middleware_of`.
        """
        listen_on_this_node()
        self._job = job
        self._device = device
        self._share = share
        self._layers = layers
        self._api: Api | None = None
        self._lost: Lost | None = None
        self._tally = Tally([job.model.name, *job.model.adapters])
        self._vitals = Vitals(job, device, share)
        self._load: Load | None = None
        self._began_s, self._start_s = time.monotonic(), 0.0
        self._speed = Speed(0.0, 0.0)
        self._running = Running()
        self._has_told = False
        self._ending: asyncio.Task[None] | None = None
        self.room: Room | None = None
        """For requests that do not wait in Ray Serve's queue; see `serve.router.proxy.own_app`."""

    async def __serve_build_asgi_app__(self) -> ASGIApp:
        """Starts the engine and returns the app.

        Raises:
            EngineDead: when the engine does not start.
        """
        job = self._job
        self.loop = asyncio.get_running_loop()
        self._api = api = await self._start()
        shape_errors(api.app)
        straighten(api.app, EXPOSED)
        complete_document(api.app, {} if job.batches.path is None else PATHS)
        app: ASGIApp = Listing(api.app, read_now, [job.model.name, *job.model.adapters])
        if job.engine.is_elastic:
            app = self._load = Load(app, job.autoscale, api.waiting)
            if job.task is Task.generate and None in (
                job.autoscale.prefill_tokens_per_s,
                job.autoscale.decode_tokens_per_s,
            ):
                self._speed = await api.measure(job.engine.max_num_seqs)
        app = wrapped(Scrape(app, self._gather), self._layers)
        self._start_s = time.monotonic() - self._began_s
        # Ray Serve keeps what its own logger hears, in the replica's file
        logging.getLogger("ray.serve").info(f"started in {self._start_s:.1f} s; {self._speed}")
        log = RequestLog(request_log_path()) if job.deployment.log_requests else None
        self._lost = Lost(app, lambda: api.is_dead, self._leave)
        routes = Routes(self._lost, self._is_ready, job.batches.path is not None)
        leaving = Leaving(routes, job.deployment.drain_s)
        self._watch = watch_own(leaving.set_leaving)
        self.rpc_app = Observe(leaving, self._tally, log)
        if app_name() != job.deployment.name:
            return unprefixed(self.rpc_app)
        self.room = Room(self.rpc_app, job.max_ongoing_requests, job.deployment.max_queued_requests)
        return self.rpc_app

    async def _start(self) -> Api:
        job = self._job
        if job.engine.kind is EngineKind.onnx:
            return await start_edge_api(job.model, job.engine, self._share)
        return await start_api(job.model, job.engine, self._device, self._share, job.task, job.deployment.vllm, EXPOSED)

    async def answer(self, scope: dict[str, Any]) -> list[Message]:
        """The whole answer to a request without a body; for Ray Serve's proxy, past its queue."""
        return [] if self.rpc_app is None else await answer_of(self.rpc_app, scope)

    async def families(self) -> Named:
        """This replica's name, and what it and its engine have counted; for whichever replica is scraped."""
        size = await asyncio.to_thread(read_notice, app_name(), Size) if self._job.engine.is_elastic else None
        target = self._job.engine.min_replicas if size is None else size.target
        load = None if self._load is None else self._report(self._load)
        unbegun, tokens = (None, None) if self._api is None else (self._api.unbegun(), self._api.tokens_per_event)
        vitals = self._vitals.families(target, self._start_s, self._speed, load, unbegun, tokens)
        return replica_name(), [*self._tally.families(), *vitals, *engine_families()]

    async def _gather(self) -> list[Named]:
        catalogue = await read_now()
        return await gather(self._running, "families", await self.families(), catalogue.keys if catalogue else ())

    async def check_health(self) -> None:
        """Ray Serve replaces the replica, with all of its engine's processes, where this fails three times.

        Where the engine is dead the replica ends by itself, which is sooner.

        Raises:
            EngineDead: when the engine answers nothing any more.
        """
        if self._api is not None and self._lost is not None:
            if self._api.is_dead:
                self._lost.end()
            try:
                await self._api.check()
            except EngineDead as error:
                await self._tell(str(error))
                raise

    async def _tell(self, cause: str) -> None:
        """Leaves word of why the engine is dead, once."""
        if not self._has_told:
            self._has_told = True
            death = Death(replica=replica_name(), cause=cause, at_s=time.time())
            with suppress(Exception):  # the cluster's head may be lost
                await asyncio.to_thread(write_notice, app_name(), death)

    def _leave(self) -> None:
        self._ending = asyncio.get_running_loop().create_task(self._end())

    async def _end(self) -> None:
        try:
            with suppress(Exception):
                await asyncio.wait_for(self.check_health(), TELL_S)
        finally:
            os._exit(1)

    def record_routing_stats(self) -> dict[str, int]:
        """Ray Serve tells the router what stands here."""
        return {"kv_tokens": self._api.kv_tokens if self._api is not None else 0}

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Ray Serve tells `serve.scaling` what stands here."""
        return {} if self._load is None else asdict(self._report(self._load))

    def _report(self, load: Load) -> Report:
        return load.report(self._start_s, *self._speed)

    async def _is_ready(self) -> bool:
        try:
            await self.check_health()
        except EngineDead:
            return False
        return True

    def __del__(self) -> None:
        """Called by Ray Serve once the replica has drained."""
        if self._api is not None:
            with suppress(Exception):
                self._api.close()
