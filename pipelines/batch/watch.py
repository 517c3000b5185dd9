"""The driver's eye on a running pipeline: pulls it, shows how far it is, and knows when to give up."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable
from typing import Any

from conf.errors import UserError
from pipelines.batch.cut import cut_off
from pipelines.batch.meter import Meter
from pipelines.batch.monitor import JobState
from pipelines.batch.plan import Plan
from pipelines.batch.progress import Display, Readings
from pipelines.batch.quiet import Quiet
from pipelines.batch.resume import Work
from pipelines.batch.summary import Written
from pipelines.batch.timeline import Timeline
from pipelines.ledger.mark import Mark

POLL_S = 0.25
LEAVE_S = 30.0
"""Seconds that the pipeline may take to end by itself when the driver leaves."""
CUT_S = 10.0
"""Seconds that it may take to end once it is cut off."""


class JobFailed(Exception):
    """The job ended for a cause that is no row's."""


class HeadLost(JobFailed):
    """The cluster's head does not answer any more; what was finished is kept."""


class Consumer:
    """Pulls the pipeline in a thread and keeps what comes out."""

    def __init__(self, dataset: Any, on_unit: Callable[[Mark], None]) -> None:
        """Starts pulling.

        Args:
            dataset: see `pipeline.build_pipeline`.
            on_unit: hears of each unit that is written, once, in another thread.
        """
        self.written = Written()
        self.error: BaseException | None = None
        self.quiet = Quiet()
        self._dataset, self._on_unit = dataset, on_unit
        self._thread = threading.Thread(target=self._pull, name="pipeline", daemon=True)
        self._thread.start()

    def wait(self, timeout_s: float) -> bool:
        """Waits for the end; returns whether it has come."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def leave(self, monitor: Any) -> None:
        """Sees to it that the pipeline has ended before the driver disconnects.

        Ray ends the whole process, with exit code 1 and no word, where a thread still speaks to it after that.

        Args:
            monitor: the job's `Monitor`, which makes replicas stop, those too that are starting.
        """
        if self.wait(0):
            return
        monitor.leave.remote()
        deadline = time.monotonic() + LEAVE_S
        while not self.wait(POLL_S):
            if self.quiet.holds(_state_or_none(monitor), time.monotonic()) or time.monotonic() > deadline:
                cut_off()
                self.wait(CUT_S)
                return

    def _pull(self) -> None:
        try:
            for batch in self._dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                for committed in batch.to_pylist():
                    is_new = committed["unit"] not in self.written.marks
                    self.written.add(committed)
                    if is_new:
                        self._on_unit(self.written.marks[committed["unit"]])
        except BaseException as error:
            self.error = error


def watch(
    consumer: Consumer,
    monitor: Any,
    display: Display,
    meter: Meter,
    plan: Plan,
    work: Work,
    interruption: threading.Event,
    lost: threading.Event,
) -> JobState:
    """Shows progress until the pipeline ends, or until an interrupted one has nothing to finish.

    Raises:
        JobFailed: when no engine can do the work, it cannot be written, or another driver took over.
        UserError: when a worker finds a mistake of the user's, such as a broken tokenizer.
    """
    readings = Readings(work.pending_rows)
    is_told, death = False, None
    while not consumer.wait(POLL_S):
        if lost.is_set():
            raise JobFailed(f"another driver took over {plan.output.root.path}: this one stood still for too long")
        if interruption.is_set() and not is_told:
            display.note("interrupted: writing what is finished (Ctrl-C again to stop at once)")
            monitor.stop.remote()
            is_told = True
        state: JobState = _ask(monitor.state)
        _check_engines(state, plan.job.engine.max_restarts)
        if interruption.is_set() and (not state.ready or consumer.quiet.holds(state, time.monotonic())):
            return state
        if state.deaths and state.deaths[-1] != death:  # many rows may kill engines in one way
            death = state.deaths[-1]
            display.note(f"an engine died and is replaced: {death}")
        readings.update(state, time.monotonic())
        display.show(readings)
        if meter.is_due:
            meter.tell(state, _ask(monitor.shares))
    state = _ask(monitor.state)
    meter.tell(state, _ask(monitor.shares))
    if consumer.error is not None:
        _check_engines(state, plan.job.engine.max_restarts)
        cause = _innermost(consumer.error)
        if isinstance(cause, UserError):
            raise UserError(str(cause)) from consumer.error
        if state.failure_errno is not None:
            cause = OSError(state.failure_errno, os.strerror(state.failure_errno))
        if isinstance(cause, OSError):
            raise JobFailed(unwritable(plan.output.root.path, cause)) from consumer.error
        lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
        said = f"{type(cause).__name__}: {lines[-1] if lines else 'see the logs'}"
        raise JobFailed(state.failure or said) from consumer.error
    return state


def timeline_of(monitor: Any) -> Timeline:
    """Returns what the replicas did, until now.

    Raises:
        HeadLost: when the cluster's head is lost.
    """
    return _ask(monitor.timeline)


def _state_or_none(monitor: Any) -> JobState | None:
    try:
        return _ask(monitor.state)
    except JobFailed:
        return None


def _ask(method: Any) -> Any:
    import ray
    from ray.exceptions import RayError

    try:
        return ray.get(method.remote())
    except RayError as error:
        lines = str(error).splitlines()
        raise HeadLost(f"the cluster's head is lost ({lines[0] if lines else error!r})") from error


def unwritable(path: str, error: OSError) -> str:
    """Says in a line why an output folder cannot be written."""
    text = " ".join(str(error).split())[:300]
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"output.path={path}: the disk is full ({text}); make room and run the same command: it goes on"
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return f"output.path={path}: it is a file, or lies below one; a folder is wanted"
    return f"output.path={path}: {text}"


def _check_engines(state: JobState, max_restarts: int) -> None:
    if state.start_failure is not None:
        raise JobFailed(f"an engine did not start: {state.start_failure}")
    if state.is_given_up:
        last = state.deaths[-1] if state.deaths else "its process ended without a word"
        raise JobFailed(
            f"{state.fruitless} engines died one after another and answered no row, engine.max_restarts={max_restarts};"
            f" the last one: {last}"
        )


def _innermost(error: BaseException) -> BaseException:
    """What began it: Ray wraps errors in errors."""
    while (inner := getattr(error, "cause", None) or error.__cause__) is not None:
        error = inner
    return error
