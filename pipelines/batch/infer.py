"""The last step: an actor with an engine, through which rows stream into part files.

Several units are in the actor at a time and share the engine's slots: while the last rows of one are being computed,
rows of the next ones fill the freed slots. So no batch waits for its slowest row.
"""

from __future__ import annotations

import asyncio
import faulthandler
import os
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Callable
from concurrent.futures import wait
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pyarrow as pa

from conf.schema.engine import Device, EngineSpec
from conf.schema.model import ModelSpec
from conf.schema.sampling import SamplingSpec
from conf.schema.task import Task
from pipelines.batch.commit import Sink, commit
from pipelines.batch.desk import ClaimsDesk
from pipelines.batch.gathering import Gathering
from pipelines.batch.monitor import ReplicaReport, now
from pipelines.batch.order import Feed, Ordering, Window
from pipelines.batch.turns import Turns
from pipelines.batch.unit import Parcel, unwrap
from pipelines.batch.unit_answer import UnitAnswer
from pipelines.batch.unit_run import UnitRun
from pipelines.ledger.folder import Folder
from pipelines.ledger.mark import read_mark
from serve.engine.errors import EngineDead
from serve.engine.heap import freeze_heap
from serve.engine.protocol import Engine, Outcome
from serve.engine.start import start_engine

REPORT_S = 0.5
"""Seconds between two reports."""
LAST_WORD_S = 10.0
"""Seconds that a process whose engine died waits for the monitor to hear of it."""
GRACE_S = 60.0
"""Seconds that a process may take, after its engine hangs, to say so; then it is ended from outside Python."""


class JobEnds(Exception):
    """The driver leaves: an engine that is starting is not wanted any more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Replica:
    """What an engine actor is made of."""

    model: ModelSpec
    engine: EngineSpec
    device: Device
    task: Task
    sampling: SamplingSpec
    max_model_len: int
    share: int
    """Engines that share a machine's cores."""
    folder: Folder
    run: str
    """Names the run of the job; see `Lease`."""
    answer_names: list[str]
    labels: list[str]
    prefix: str
    max_attempts: int
    is_redrive: bool
    ordering: Ordering
    api_key: str | None = field(default=None, repr=False)
    """Of the service, where that is the engine."""


class Infer:
    """An engine and the event loop that it lives on. Ray Data calls it from several threads."""

    def __init__(self, replica: Replica, sink: Sink, monitor: Any, claims: Any) -> None:
        """Starts the engine.

        Args:
            replica: what to start.
            sink: where answers go.
            monitor: handle of the job's `Monitor`.
            claims: handle of the job's `Claims`; null where equal requests are not shared.

        Raises:
            EngineDead: when the engine does not start.
            JobEnds: when the job ended meanwhile.
        """
        import ray

        self._ray = ray
        self._monitor = monitor
        self._replica, self._sink = replica, sink
        slots = min(replica.engine.max_num_seqs, replica.engine.in_flight_rows)
        self._report = ReplicaReport(replica=uuid.uuid4().hex[:8], began_at=now(), slots=slots)
        self._claims = claims
        self.is_stopping = False
        self._samplings: dict[str | None, SamplingSpec] = {}
        self._runs: set[UnitRun] = set()
        self._death = threading.Lock()
        self._alive_at = time.monotonic()
        self._progress = 0
        wait_s: Any = ray.get(monitor.may_start.remote())
        if wait_s is None:
            raise EngineDead("too many engines died")
        begin = time.monotonic() + wait_s
        while (left_s := begin - time.monotonic()) > 0:
            time.sleep(min(left_s, REPORT_S))
            self._check_leaving()
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="engine-loop", daemon=True).start()
        try:
            self._engine = self._start_engine()
        except BaseException as error:
            if not isinstance(error, JobEnds):
                ray.get(monitor.failed_to_start.remote(_cause(error)))
            raise
        freeze_heap()
        self._report.ready_at = now()
        self._report.engine = self._engine.stats()
        ordering = replica.ordering
        gathering = Gathering(ordering.first_units, ordering.first_tokens)
        self._turns = Turns(self._engine, Window(ordering), gathering, self._answered)
        asyncio.run_coroutine_threadsafe(self._keep_reporting(), self._loop)

    def __call__(self, wrapped: pa.Table) -> pa.Table:
        """Answers the rows of units and writes them: what was answered here need not go through another process.

        Returns:
            A row for each unit; see `commit.COMMITTED`. Rows that had not ended when the job was stopped are not in it.

        Raises:
            LeaseLost: when another driver took over.
            OSError: when the ledger or a part file cannot be written.
        """
        try:
            return commit((self._answer(parcel) for parcel in unwrap(wrapped)), self._sink)
        except Exception as error:  # Ray Data hands on that something failed, and not what
            self._ray.get(self._monitor.failed.remote(f"{type(error).__name__}: {_cause(error)}", _errno(error)))
            raise

    def _answer(self, parcel: Parcel) -> Parcel:
        mark = read_mark(self._replica.folder, parcel.unit.id)
        if mark is not None and mark.run == self._replica.run:
            # Ray runs a task again when what came of it is lost with a node; this unit is written already
            return replace(parcel, table=parcel.table.slice(0, 0), note={"is_committed": True})
        answer = UnitAnswer(self._replica, parcel, self._samplings)
        run = UnitRun(
            self._replica.folder,
            parcel.unit.id,
            self._replica.run,
            self._report.replica,
            ClaimsDesk(self._claims, self._report.replica, parcel.unit.id) if self._claims is not None else None,
            self._replica.max_attempts,
        )
        self._runs.add(run)
        try:
            found = run.answer(answer.requests, answer.former, self)
        except EngineDead as error:
            self.die(error)
            raise
        finally:
            self._runs.discard(run)
        run.log.close()
        done = answer.parcel(found)
        self._report.found += len(done.table) - len(found.ran())
        self._report.bad += answer.bad_rows
        self._ray.get(self._monitor.report.remote(self._report))  # the job may end before the next regular report
        return done

    def ask(
        self, feed: Feed, is_alone: bool, on_outcome: Callable[[Outcome], None], on_tick: Callable[[], None]
    ) -> None:
        """Runs requests to their end; see `unit_run.Asking`."""
        self._report.last_request_at = self._report.last_request_at if is_alone else now()
        self._report.first_request_at = self._report.first_request_at or now()
        self._await(self._ask(feed, is_alone, on_outcome, on_tick))

    async def _ask(
        self, feed: Feed, is_alone: bool, on_outcome: Callable[[Outcome], None], on_tick: Callable[[], None]
    ) -> None:
        self._report.alone += is_alone
        try:
            await self._turns.ask(feed, is_alone, on_outcome, on_tick)
        finally:
            self._report.alone -= is_alone

    def _answered(self) -> None:
        self._report.last_answer_at = now()
        self._report.first_answer_at = self._report.first_answer_at or self._report.last_answer_at

    def _start_engine(self) -> Engine:
        """Starts the engine, and gives up where the job ends meanwhile."""
        r = self._replica
        starting = asyncio.run_coroutine_threadsafe(
            start_engine(r.model, r.engine, r.device, r.max_model_len, r.share, r.task, r.api_key, is_bulk=True),
            self._loop,
        )
        deadline = time.monotonic() + r.engine.start_timeout_s
        while not starting.done():
            if time.monotonic() > deadline:
                raise EngineDead(f"not ready after engine.start_timeout_s={r.engine.start_timeout_s:g}")
            wait([starting], REPORT_S)
            self._check_leaving()
        return starting.result()

    async def _keep_reporting(self) -> None:
        while True:
            self._watch()
            if self._claims is not None:
                self._claims.alive.remote(self._report.replica)
            try:
                stop = await asyncio.wrap_future(self._monitor.report.remote(self._report).future())
            except Exception:  # the job's monitor is gone, and with it the job
                return
            if stop and not self.is_stopping:
                self.is_stopping = True
                self._turns.stop()
            await asyncio.sleep(REPORT_S)

    def _watch(self) -> None:
        """Ends an engine that holds rows and answers none."""
        stats, limit_s = self._engine.stats(), self._replica.engine.hang_timeout_s
        progress = stats.completions + stats.rejections + stats.steps
        if progress != self._progress or not stats.running:
            self._progress, self._alive_at = progress, time.monotonic()
            # where an engine keeps Python itself from running, only this ends the process
            faulthandler.dump_traceback_later(limit_s + GRACE_S, exit=True)
        elif time.monotonic() - self._alive_at > limit_s:
            self.die(EngineDead(f"the engine hangs: {stats.running} rows, no answer for {limit_s:g} s"))

    def _check_leaving(self) -> None:
        if self._ray.get(self._monitor.leaving.remote()):
            raise JobEnds("the job ended before its engine had started")

    def _await(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def die(self, error: EngineDead) -> None:
        """Ends the process: Ray retries its units elsewhere. An exception would be retried on this same actor."""
        with self._death:  # never released: the first thread that comes ends all
            traceback.print_exception(error)
            sys.stderr.flush()
            try:
                self._testify(_cause(error))
            finally:
                os._exit(1)

    def _testify(self, cause: str) -> None:
        """Tells all who must know of the death; each hears of it whatever becomes of the others."""
        said: list[Callable[[], object]] = [partial(run.log.died, cause) for run in tuple(self._runs)]
        if self._claims is not None:
            said.append(partial(self._claims.release.remote, self._report.replica))
        done = self._report.engine.completions
        said.append(
            lambda: self._ray.get(self._monitor.died.remote(self._report.replica, cause, done), timeout=LAST_WORD_S)
        )
        for say in said:
            try:
                say()
            except Exception:  # such as a log that its unit closes meanwhile
                traceback.print_exc()
        sys.stderr.flush()


def _errno(error: BaseException) -> int | None:
    return error.errno if isinstance(error, OSError) else None


def _cause(error: BaseException) -> str:
    return " ".join(str(error).split())[:2000] or type(error).__name__
