"""The deployment of Ray Serve: a replica is an engine with vLLM's own app, which answers without a second hop."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from conf.schema.engine import Device
from conf.schema.serve import ServeJob
from serve.engine.errors import EngineDead
from serve.engine.vllm.api import VllmApi, start_api
from serve.middleware.answer import ASGIApp
from serve.middleware.observe import Observe
from serve.middleware.record import RequestLog
from serve.middleware.routes import EXPOSED, Routes
from serve.middleware.scrape import Scrape
from serve.middleware.stack import Layer, wrapped
from serve.middleware.tally import Tally
from serve.telemetry import Named, engine_families, gather, replica_name, request_log_path


class Replica:
    """Holds one engine. Ray Serve calls what is here; requests go to the app past it."""

    def __init__(self, job: ServeJob, device: Device, share: int, layers: Sequence[Layer]) -> None:
        """Args.

        job: the service; its paths are absolute.
        device: cpu or cuda, decided.
        share: engines that share a machine's cores.
        layers: the middleware; see `middleware_of`.
        """
        self._job = job
        self._device = device
        self._share = share
        self._layers = layers
        self._api: VllmApi | None = None
        self._tally = Tally([job.model.name, *job.model.adapters])

    async def __serve_build_asgi_app__(self) -> ASGIApp:
        """Starts the engine and returns the app.

        Raises:
            EngineDead: when the engine does not start.
        """
        job = self._job
        self._api = await start_api(
            job.model, job.engine, self._device, self._share, job.task, job.deployment.vllm, EXPOSED
        )
        app = wrapped(Scrape(self._api.app, self._gather), self._layers)
        log = RequestLog(request_log_path()) if job.deployment.log_requests else None
        return Observe(Routes(app, self._is_ready, job.batches.path is not None), self._tally, log)

    async def families(self) -> Named:
        """This replica's name, and what it and its engine have counted; for whichever replica is scraped."""
        return replica_name(), [*self._tally.families(), *engine_families()]

    async def _gather(self) -> list[Named]:
        return await gather("families", await self.families())

    async def check_health(self) -> None:
        """Ray Serve replaces the replica, with all of its engine's processes, where this fails three times.

        Raises:
            EngineDead: when the engine answers nothing any more.
        """
        if self._api is not None:
            await self._api.check()

    def record_routing_stats(self) -> dict[str, int]:
        """Ray Serve tells the router what stands here."""
        return {"kv_tokens": self._api.kv_tokens if self._api is not None else 0}

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
