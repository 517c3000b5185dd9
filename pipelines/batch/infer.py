"""The third step: an actor with an engine, through which rows stream.

Several blocks are in the actor at a time and share the engine's slots: while the last rows of one block are being
computed, rows of the next ones fill the freed slots. So no batch waits for its slowest row.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import traceback
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from conf.schema.engine import Device, EngineSpec
from conf.schema.model import ModelSpec
from conf.schema.sampling import SamplingSpec
from pipelines.batch import columns as c
from pipelines.batch.identify import failed_rows
from pipelines.batch.monitor import ReplicaReport, now
from serve.engine.errors import EngineDead
from serve.engine.protocol import Completion, Engine, Outcome, Rejection, Request
from serve.engine.start import start_engine

REPORT_S = 0.5
"""Seconds between two reports."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Replica:
    """What an engine actor is made of."""

    model: ModelSpec
    engine: EngineSpec
    device: Device
    sampling: SamplingSpec
    max_model_len: int
    share: int
    """Engines that share a machine's cores."""


class Infer:
    """An engine and the event loop that it lives on. Ray Data calls it from several threads."""

    def __init__(self, replica: Replica, monitor: Any) -> None:
        """Starts the engine.

        Args:
            replica: what to start.
            monitor: handle of the job's `Monitor`.

        Raises:
            EngineDead: when the engine does not start.
        """
        import ray

        self._ray = ray
        self._monitor = monitor
        self._replica = replica
        self._report = ReplicaReport(replica=uuid.uuid4().hex[:8])
        self._is_stopping = False
        self._pumps: set[asyncio.Task[None]] = set()
        if not ray.get(monitor.may_start.remote()):
            raise EngineDead("too many engines died")
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="engine-loop", daemon=True).start()
        try:
            self._engine = self._await(self._start(), replica.engine.start_timeout_s)
        except BaseException as error:
            is_late = isinstance(error, TimeoutError)
            cause = f"not ready after engine.start_timeout_s={replica.engine.start_timeout_s:g}"
            ray.get(monitor.failed_to_start.remote(cause if is_late else _cause(error)))
            raise
        self._report.ready_at = now()
        self._report.engine = self._engine.stats()
        asyncio.run_coroutine_threadsafe(self._keep_reporting(), self._loop)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Answers the rows of a block.

        Returns:
            The block with answers. Rows that had not ended when the job was stopped are missing.
        """
        bad = failed_rows(table).to_pylist()
        todo = [index for index, is_bad in enumerate(bad) if not is_bad]
        outcomes = self._outcomes(table, todo) if todo and not self._is_stopping else {}
        kept = [index for index, is_bad in enumerate(bad) if is_bad or index in outcomes]
        self._report.skipped += len(table) - len(todo)
        return _with_outcomes(table, kept, outcomes)

    def _outcomes(self, table: pa.Table, todo: list[int]) -> dict[int, Outcome]:
        tokens = table.column(c.TOKENS)
        call = uuid.uuid4().hex[:8]

        def requests() -> Iterator[Request]:
            for index in todo:
                token_ids = tokens[index].as_py()
                yield Request(id=f"{call}-{index}", token_ids=token_ids, sampling=self._replica.sampling)

        outcomes: dict[int, Outcome] = {}
        self._report.first_request_at = self._report.first_request_at or now()
        try:
            self._await(self._pump(requests(), outcomes))
        except EngineDead as error:
            self._die(error)
        return outcomes

    async def _pump(self, requests: Iterator[Request], outcomes: dict[int, Outcome]) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._pumps.add(task)
        stream = self._engine.generate(requests)
        try:
            async for outcome in stream:
                self._report.last_answer_at = now()
                self._report.first_answer_at = self._report.first_answer_at or self._report.last_answer_at
                outcomes[int(outcome.request_id.rsplit("-", 1)[1])] = outcome
        except asyncio.CancelledError:
            if not self._is_stopping:
                raise
        finally:
            self._pumps.discard(task)
            await stream.aclose()  # type: ignore[attr-defined]

    async def _start(self) -> Engine:
        r = self._replica
        return await start_engine(r.model, r.engine, r.device, r.max_model_len, r.share)

    async def _keep_reporting(self) -> None:
        while True:
            try:
                stop = await asyncio.wrap_future(self._monitor.report.remote(self._report).future())
            except Exception:  # the job's monitor is gone, and with it the job
                return
            if stop and not self._is_stopping:
                self._is_stopping = True
                for task in tuple(self._pumps):
                    task.cancel()
            await asyncio.sleep(REPORT_S)

    def _await(self, coroutine: Any, timeout_s: float | None = None) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(timeout_s)

    def _die(self, error: EngineDead) -> None:
        """Ends the process: Ray retries its blocks elsewhere. An exception would be retried on this same actor."""
        traceback.print_exception(error)
        sys.stderr.flush()
        try:
            self._ray.get(self._monitor.died.remote(self._report.replica, _cause(error)), timeout=10)
        finally:
            os._exit(1)


def _cause(error: BaseException) -> str:
    return " ".join(str(error).split())[:2000] or type(error).__name__


def _with_outcomes(table: pa.Table, kept: list[int], outcomes: dict[int, Outcome]) -> pa.Table:
    errors, messages = table.column(c.ERROR).to_pylist(), table.column(c.MESSAGE).to_pylist()
    done: list[Completion | None] = []
    for index in kept:
        outcome = outcomes.get(index)
        if isinstance(outcome, Rejection):
            errors[index], messages[index] = outcome.error, outcome.message
        done.append(outcome if isinstance(outcome, Completion) else None)
    table = c.with_column(table, c.ERROR, errors)
    table = c.with_column(table, c.MESSAGE, messages)
    if len(kept) < len(table):
        table = table.take(pa.array(kept, pa.int64()))
    table = table.drop_columns([c.TOKENS])
    values = {
        c.OUTPUT: [d.text if d else None for d in done],
        c.FINISH_REASON: [d.finish_reason if d else None for d in done],
        c.PROMPT_TOKENS: [d.prompt_tokens if d else None for d in done],
        c.COMPLETION_TOKENS: [d.completion_tokens if d else None for d in done],
        c.ATTEMPTS: [1 if index in outcomes else 0 for index in kept],
    }
    for name, column in values.items():
        table = c.with_column(table, name, column)
    return table
