"""An `Engine` whose model runs elsewhere: a service with OpenAI's API."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Collection, Iterable
from contextlib import suppress

from conf.errors import UserError
from conf.schema.engine import EngineSpec
from conf.schema.model import ModelSpec
from conf.schema.service import AdmissionRule
from conf.schema.task import Task
from serve.engine.errors import EngineDead, RequestRejected
from serve.engine.in_flight import InFlight
from serve.engine.protocol import EngineStats, Outcome, Request
from serve.engine.service.admission import Admission, Observation, admit, turned_away
from serve.engine.service.client import Busy, Client, Failed, Reply, TooLong, look, metrics
from serve.engine.service.gate import Gate
from serve.engine.service.saturation import Page, read_page, step_s
from serve.engine.service.wire import PATHS, BadAnswer, body_of, outcome_of, refusal_of
from serve.engine.vllm.grammar import has_grammar
from serve.engine.vllm.outcomes import rejected

WAIT_S, MAX_WAIT_S = 0.5, 30.0
"""How long a busy service is left alone at first where it does not say, and at most: twice as long each time."""


class ServiceEngine:
    """Sends tokens to a service as there is room for them there.

    `EngineStats.steps` counts looks at a service that lives while requests are here: one that has no room for hours is
    no engine that hangs.
    """

    def __init__(self, model: ModelSpec, spec: EngineSpec, max_model_len: int, task: Task, api_key: str | None) -> None:
        """Makes the engine.

        Args:
            model: its name, and those of its adapters.
            spec: the engine's node.
            max_model_len: the context in tokens that requests were made for.
            task: one of `PATHS`.
            api_key: the service's key, if any.
        """
        self._service, self._model, self._task = spec.service, spec.service.model or model.name, task
        self._stats = EngineStats(max_model_len=max_model_len)
        self._in_flight = InFlight(spec.in_flight_rows, self._stats)
        self._limit = spec.in_flight_rows
        self._client = Client(spec.service, api_key, spec.in_flight_rows)
        self._gate = Gate()
        self._admission = Admission()
        self._page: Page | None = None
        self._names: Collection[str] = ()
        self._quiet_until, self._busy = 0.0, 0
        self._death: str | None = None
        self._looking: asyncio.Task[None] | None = None
        self.called_back = 0
        """Requests that were taken back from the service to make room."""

    async def start(self) -> None:
        """Waits until the service is there.

        Raises:
            EngineDead: when it is there and cannot be used.
        """
        began = time.monotonic()
        while True:
            try:
                known = await look(self._client, self._service, self._model)
                break
            except Busy as error:
                await asyncio.sleep(min(error.wait_s or WAIT_S, MAX_WAIT_S))
            except UserError as error:
                raise EngineDead(str(error)) from error
        self._names = known
        if (context := known[self._model]) is not None:
            self._stats.max_model_len = min(self._stats.max_model_len, context)
        self._stats.start_s["load"] = time.monotonic() - began
        self._looking = asyncio.create_task(self._keep_looking())

    def generate(self, requests: Iterable[Request], exclusive: bool = False) -> AsyncIterator[Outcome]:
        """See `Engine.generate`."""
        return self._in_flight.stream(requests, self._answer, exclusive)

    async def health(self) -> None:
        """See `Engine.health`."""
        self._check()

    def stats(self) -> EngineStats:
        """See `Engine.stats`."""
        return self._stats

    async def close(self) -> None:
        """See `Engine.close`."""
        self._death = self._death or "closed"
        if self._looking is not None:
            self._looking.cancel()
        await self._client.close()

    def _check(self) -> None:
        if self._death is not None:
            raise EngineDead(self._death)

    async def _answer(self, request: Request) -> Outcome:
        self._check()
        model = request.adapter or self._model
        if model not in self._names:
            known = ", ".join(sorted(self._names)[:10])
            raise RequestRejected("unknown_adapter", f"the service has no model '{model}' (there are {known})")
        body = body_of(self._task, request, model, self._service.priority, self._stats.max_model_len)
        failures = 0
        while True:
            try:
                reply = await self._gate.run(lambda: self._client.post(PATHS[self._task], body))
                outcome = self._judge(request, reply)
                self._busy = 0
                return outcome
            except Busy as error:
                self._check()
                now = time.monotonic()
                if now >= self._quiet_until:  # of all that are turned away at once, the first
                    self._admission = turned_away(self._admission, self._gate.held + 1, now)
                await self._leave_alone(error.wait_s)
            except TooLong as error:
                raise RequestRejected("answer_too_long", f"{error} (engine.service.max_answer_bytes)") from None
            except (Failed, BadAnswer) as error:
                self._check()
                failures += 1
                if failures > self._service.max_retries:
                    if has_grammar(request.sampling):  # vLLM answers 500 where a grammar does not compile
                        raise RequestRejected("bad_grammar", f"the service failed {failures} times: {error}") from None
                    self._die(f"{self._service.url} failed {failures} times at a request: {error}")
                await self._leave_alone(None)

    def _judge(self, request: Request, reply: Reply) -> Outcome:
        if reply.status == 200:
            return outcome_of(self._task, request, reply.body)
        code, said = refusal_of(reply.body)
        told = f"{reply.status}{f': {said}' if said else ''}"
        if reply.status == 429 and reply.is_final:
            raise RequestRejected("engine_rejected", said or told)
        if reply.status in (429, 503):
            raise Busy(told, reply.wait_s)
        if reply.status == 400 and self._service.priority and "priority" in said and "schedul" in said:
            self._die(f"{self._service.url} knows no priorities (engine.service.priority=0 asks without): {said}")
        if reply.status in (400, 413, 422):
            raise rejected(ValueError(said or told))
        if reply.status in (401, 403, 404):
            self._die(f"{self._service.url} takes no more requests: {told} {code}")
        raise Failed(told)

    def _die(self, cause: str) -> None:
        self._death = self._death or cause
        raise EngineDead(self._death)

    async def _leave_alone(self, wait_s: float | None) -> None:
        """Waits, and with it all others: a service that is busy for one is busy for all."""
        now = time.monotonic()
        if now >= self._quiet_until:
            self._busy += 1
        own_s = WAIT_S * 2.0 ** min(self._busy - 1, 10)
        self._quiet_until = max(self._quiet_until, now + min(own_s if wait_s is None else wait_s, MAX_WAIT_S))
        self._gate.resize(0)
        await asyncio.sleep(self._quiet_until - now)
        self._open()

    async def _keep_looking(self) -> None:
        """Looks at the service again and again while requests are here."""
        spec = self._service.admission
        pause_s = spec.poll_s if spec.rule is AdmissionRule.room else spec.stale_s
        while True:
            began = time.monotonic()
            if self._stats.running:
                own, before = self._gate.held, self._page
                self._page = await self._look(began) or before
                if self._page is not before:
                    self._stats.steps += 1
                self._admit(before, own)
            await asyncio.sleep(max(0.0, pause_s - (time.monotonic() - began)))

    async def _look(self, began: float) -> Page | None:
        spec = self._service.admission
        with suppress(Busy, UserError, TimeoutError):
            async with asyncio.timeout(spec.stale_s):
                if spec.rule is AdmissionRule.room:
                    return read_page(await metrics(self._client, self._service), began)
                await look(self._client, self._service, self._model)
                return Page(at_s=began, replicas=1, running=0, waiting=0, kv_fraction=0.0, interactive=None)
        return None

    def _admit(self, before: Page | None, own: int) -> None:
        if self._service.admission.rule is AdmissionRule.room:
            # a page may be a moment older than what is here: what was here then counts as well
            own = max(own, self._gate.held)
            seen = None if self._page is None else _observation(self._page, before, own, self._service.priority > 0)
            _, self._admission = admit(self._admission, seen, self._service.admission, time.monotonic())
            if self._admission.is_urgent and self._service.admission.cancel:
                self.called_back += self._gate.call_back()
        self._open()

    def _open(self) -> None:
        if time.monotonic() >= self._quiet_until:
            is_open = self._service.admission.rule is AdmissionRule.all
            self._gate.resize(self._limit if is_open else self._admission.size)


def _observation(page: Page, before: Page | None, own: int, is_deferrable: bool) -> Observation:
    if page.interactive is None:  # it does not say whose its requests are: all but ours
        interactive = max(0, page.running + page.waiting - own)
    elif is_deferrable:
        interactive = page.interactive
    else:  # without a priority, and without a key of class batch, ours are among them
        interactive = max(0, page.interactive - max(0, own - page.deferrable))
    return Observation(
        at_s=page.at_s,
        replicas=page.replicas,
        running=page.running,
        waiting=page.waiting,
        kv_fraction=page.kv_fraction,
        interactive=interactive,
        own=own,
        deferrable=page.deferrable,
        # without a priority ours are among those that somebody seems to wait for
        unbegun=page.unbegun if is_deferrable else None,
        first_wait_s=page.first_wait_s,
        step_s=step_s(before, page),
    )
